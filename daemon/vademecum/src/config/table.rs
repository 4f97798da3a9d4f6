//! The form of the table of keys. A row of [`super::keys`] becomes a typed field, its default, its checks and its documentation.

use super::Config;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use toml::Value;

/// A key of the configuration.
pub struct ConfigKey {
    /// Dotted name: `mqtt.broker`.
    pub name: &'static str,
    /// Lines of documentation: one of help, then an empty one and more if there is more to say.
    pub doc: &'static [&'static str],
    /// The field's type in Rust.
    pub rust_type: &'static str,
    /// Unit of a number.
    pub unit: &'static str,
    /// The values that the key takes.
    pub bounds: Bounds,
    /// Whether a reload takes the key over; else it takes effect at the next start.
    pub live: bool,
    /// The flag that sets the key too, with its dashes. Empty: only `--set` does.
    pub flag: &'static str,
    /// An earlier name, which is understood with a hint. Empty: none.
    pub formerly: &'static str,
    /// Checks that [`ConfigKey::bounds`] cannot express. The error is a clause that follows the key's name.
    pub check: fn(&Config) -> Result<(), String>,
}

/// The key of a row that has only name, type, default and documentation.
pub(super) const PLAIN: ConfigKey = ConfigKey {
    name: "",
    doc: &[],
    rust_type: "",
    unit: "",
    bounds: Bounds::Any,
    live: false,
    flag: "",
    formerly: "",
    check: |_| Ok(()),
};

/// The values that a key takes.
pub enum Bounds {
    /// Any value of the type.
    Any,
    /// Whole numbers.
    Whole(RangeInclusive<i64>),
    /// Numbers.
    Number(RangeInclusive<f64>),
    /// Words, each with its meaning.
    OneOf(&'static [(&'static str, &'static str)]),
}

impl Bounds {
    /// Checks a value.
    ///
    /// # Errors
    /// A clause that follows the key's name.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let outside = match (self, value) {
            (Self::Whole(range), Value::Integer(number)) if !range.contains(number) => number.to_string(),
            (Self::Number(range), Value::Float(number)) if !range.contains(number) => number.to_string(),
            (Self::OneOf(words), Value::String(given)) if !words.iter().any(|(word, _)| word == given) => {
                return Err(format!("is `{given}`; write {}", self.shown()));
            }
            _ => return Ok(()),
        };
        Err(format!("is {outside}; it must be from {}", self.shown()))
    }

    /// `5 to 65535`, or the words.
    pub fn shown(&self) -> String {
        match self {
            Self::Any => String::new(),
            Self::Whole(range) => format!("{} to {}", range.start(), range.end()),
            Self::Number(range) => format!("{} to {}", range.start(), range.end()),
            Self::OneOf(words) => {
                let quoted: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                match quoted.split_last() {
                    Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                    _ => quoted.concat(),
                }
            }
        }
    }
}

impl ConfigKey {
    /// The key with this name, or with this earlier name.
    pub fn named(name: &str) -> Option<&'static Self> {
        let now = super::KEYS.iter().find(|key| key.name == name);
        now.or_else(|| super::KEYS.iter().find(|key| !key.formerly.is_empty() && key.formerly == name))
    }

    /// Section and leaf, such as `mqtt` and `broker`; the section is empty for keys above all sections.
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }

    /// One line of help.
    pub fn help(&self) -> &'static str {
        self.doc.first().map_or("", |line| line.trim())
    }

    /// The rest of the documentation, in one line.
    pub fn more(&self) -> String {
        self.doc.iter().skip(1).map(|line| line.trim()).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// The meanings of the words that the key takes.
    pub fn words(&self) -> &'static [(&'static str, &'static str)] {
        if let Bounds::OneOf(words) = self.bounds { words } else { &[] }
    }

    /// `5 to 65535 seconds`: the values that the key takes. Empty for keys without bounds.
    pub fn values(&self) -> String {
        format!("{} {}", self.bounds.shown(), self.unit).trim().to_owned()
    }

    /// The type in words, for keys that [`ConfigKey::values`] does not describe.
    pub fn type_name(&self) -> &'static str {
        match self.rust_type {
            "bool" => "true or false",
            "PathBuf" => "path",
            "Vec<String>" => "list of texts",
            _ => "text",
        }
    }
}

/// A default in a row: a value of the field's type, or text for types made from text.
pub(super) trait Given<T> {
    fn given(self) -> T;
}

impl<T> Given<T> for T {
    fn given(self) -> T {
        self
    }
}

impl Given<String> for &str {
    fn given(self) -> String {
        self.into()
    }
}

impl Given<PathBuf> for &str {
    fn given(self) -> PathBuf {
        self.into()
    }
}

impl<const N: usize> Given<Vec<String>> for [&str; N] {
    fn given(self) -> Vec<String> {
        self.map(String::from).to_vec()
    }
}

/// Defines the typed configuration and [`super::KEYS`] from the table:
///
/// ```text
/// Config { ROW… }                                  keys above all sections
/// Mqtt [mqtt] "About the section." { ROW… }
///
/// ROW:  /// One line of help.
///       ///
///       /// More, if there is more to say.
///       name: Type = default, column: value, …;    columns are fields of `ConfigKey`; those left out are as in `PLAIN`
/// ```
macro_rules! table {
    (
        $root:ident {
            $( $(#[doc = $root_doc:expr])+ $root_key:ident: $root_type:ty = $root_default:expr $(, $root_column:ident: $root_value:expr)*; )*
        }
        $(
            $section:ident [$name:ident] $about:literal {
                $( $(#[doc = $doc:expr])+ $key:ident: $type:ty = $default:expr $(, $column:ident: $value:expr)*; )*
            }
        )*
    ) => {
        /// The whole configuration.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $root {
            $( $(#[doc = $root_doc])+ pub $root_key: $root_type, )*
            $( #[doc = $about] pub $name: $section, )*
        }

        impl Default for $root {
            fn default() -> Self {
                Self {
                    $( $root_key: $crate::config::table::Given::<$root_type>::given($root_default), )*
                    $( $name: $section::default(), )*
                }
            }
        }

        $(
            #[doc = $about]
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $section {
                $( $(#[doc = $doc])+ pub $key: $type, )*
            }

            impl Default for $section {
                fn default() -> Self {
                    Self { $( $key: $crate::config::table::Given::<$type>::given($default), )* }
                }
            }
        )*

        /// Sections by name, each with a sentence about it, in the order of the table. Keys above all sections have an empty
        /// name.
        pub const SECTIONS: &[(&str, &str)] = &[("", ""), $( (stringify!($name), $about), )*];

        /// Every key, in the order of the table.
        pub static KEYS: &[ConfigKey] = &[
            $( ConfigKey {
                name: stringify!($root_key),
                doc: &[$($root_doc),+],
                rust_type: stringify!($root_type),
                $( $root_column: $root_value, )*
                ..PLAIN
            }, )*
            $( $( ConfigKey {
                name: concat!(stringify!($name), ".", stringify!($key)),
                doc: &[$($doc),+],
                rust_type: stringify!($type),
                $( $column: $value, )*
                ..PLAIN
            }, )* )*
        ];
    };
}

pub(super) use table;
