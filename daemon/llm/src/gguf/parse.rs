//! The bounded parser. A length from the file is used only after it is known to lie inside the file. So memory stays in
//! proportion to the descriptions in the file.

use std::collections::HashSet;
use std::path::Path;

use super::metadata::{MetadataEntry, ValueType};
use super::{GgufError, Tensor, TensorType};

/// Longest key the format allows.
const MAX_KEY_BYTES: u64 = 65_535;
/// ggml keeps tensor names in 64 bytes with a final zero.
const MAX_TENSOR_NAME_BYTES: u64 = 63;
/// Dimensions a ggml tensor can have.
const MAX_DIMS: u32 = 4;
/// More keys than any model has (about 50); every key costs memory here and a linear search.
const MAX_KEYS: u64 = 16_384;
/// More tensors than any single file has (large mixtures come near 2,000).
const MAX_TENSORS: u64 = 262_144;

pub(super) struct Header {
    pub(super) version: u32,
    pub(super) entries: Vec<MetadataEntry>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) data_offset: u64,
}

pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, GgufError> {
    let mut cursor = Cursor { path, file, at: 0 };
    let version = cursor.header()?;
    let tensor_count = cursor.u64("the number of tensors")?;
    let key_count = cursor.u64("the number of metadata keys")?;
    // The shortest key takes 8+1+4+1 bytes, the shortest tensor description 8+1+4+8+4+8.
    cursor.bound_count(key_count, MAX_KEYS, 14, "metadata keys")?;
    let entries = cursor.entries(key_count)?;
    cursor.bound_count(tensor_count, MAX_TENSORS, 33, "tensors")?;
    let alignment = cursor.alignment(&entries)?;
    let mut tensors = cursor.tensors(tensor_count, alignment)?;
    let data_offset = if tensors.is_empty() { cursor.at as u64 } else { (cursor.at as u64).next_multiple_of(alignment) };
    cursor.place(&mut tensors, data_offset)?;
    Ok(Header { version, entries, tensors, data_offset })
}

struct Cursor<'a> {
    path: &'a Path,
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn damaged(&self, what: String) -> GgufError {
        GgufError::Damaged { path: self.path.to_path_buf(), what }
    }

    fn truncated(&self, what: &str, needed: u64) -> GgufError {
        GgufError::Truncated { path: self.path.to_path_buf(), what: what.to_owned(), needed, size: self.file.len() as u64 }
    }

    fn remaining(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], GgufError> {
        if len > self.remaining() {
            return Err(self.truncated(what, (self.at as u64).saturating_add(len)));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(&self.file[start..self.at])
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        let low = self.u32(what)?;
        let high = self.u32(what)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// A short string that serves as a name.
    fn name(&mut self, max: u64, what: &str) -> Result<String, GgufError> {
        let len = self.u64(what)?;
        if len == 0 || len > max {
            return Err(self.damaged(format!("{what} has a name of {len} bytes, 1 to {max} are allowed")));
        }
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(name) if !name.contains('\0') => Ok(name.to_owned()),
            _ => Err(self.damaged(format!("{what} has a name that is not text"))),
        }
    }

    fn bound_count(&self, count: u64, max: u64, least_bytes: u64, what: &str) -> Result<(), GgufError> {
        if count > max {
            return Err(self.damaged(format!("it announces {count} {what}, at most {max} are accepted")));
        }
        if count * least_bytes > self.remaining() {
            return Err(self.truncated(what, self.at as u64 + count * least_bytes));
        }
        Ok(())
    }

    fn header(&mut self) -> Result<u32, GgufError> {
        if !self.file.starts_with(b"GGUF") {
            let (found, remedy) = what_instead(self.file);
            return Err(GgufError::NotGguf { path: self.path.to_path_buf(), found, remedy });
        }
        self.at = 4;
        let version = self.u32("the version")?;
        match version {
            2 | 3 => Ok(version),
            other => Err(GgufError::Version {
                path: self.path.to_path_buf(),
                found: match other.swap_bytes() {
                    swapped @ 1..=255 => format!("version {swapped}, big endian"),
                    _ => format!("version {other}"),
                },
            }),
        }
    }

    fn entries(&mut self, count: u64) -> Result<Vec<MetadataEntry>, GgufError> {
        let mut entries = Vec::with_capacity(count as usize);
        let mut seen = HashSet::with_capacity(count as usize);
        for n in 0..count {
            let key = self.name(MAX_KEY_BYTES, &format!("metadata key {n}"))?;
            if !seen.insert(key.clone()) {
                return Err(self.damaged(format!("metadata key `{}` occurs twice", shown(&key))));
            }
            entries.push(self.entry(key)?);
        }
        Ok(entries)
    }

    fn entry(&mut self, key: String) -> Result<MetadataEntry, GgufError> {
        let what = format!("metadata `{}`", shown(&key));
        let value_type = self.value_type(&what)?;
        let array = match value_type {
            ValueType::Array => {
                let item = self.value_type(&what)?;
                Some((item, self.u64(&what)?))
            }
            _ => None,
        };
        let start = self.at;
        match array {
            None => self.skip(value_type, &what)?,
            Some((ValueType::Array, _)) => {
                return Err(self.damaged(format!("{what} is an array of arrays")));
            }
            Some((ValueType::Text, len)) => {
                for _ in 0..len {
                    self.skip(ValueType::Text, &what)?;
                }
            }
            Some((item, len)) => {
                let bytes = item.size().and_then(|size| size.checked_mul(len)).unwrap_or(u64::MAX);
                self.take(bytes, &what)?;
            }
        }
        Ok(MetadataEntry { key, value_type, array, range: start..self.at })
    }

    fn value_type(&mut self, what: &str) -> Result<ValueType, GgufError> {
        let id = self.u32(what)?;
        ValueType::from_id(id).ok_or_else(|| self.damaged(format!("{what} has the unknown value type {id}")))
    }

    fn skip(&mut self, value_type: ValueType, what: &str) -> Result<(), GgufError> {
        let len = match value_type.size() {
            Some(size) => size,
            None => self.u64(what)?,
        };
        self.take(len, what).map(|_| ())
    }

    fn alignment(&self, entries: &[MetadataEntry]) -> Result<u64, GgufError> {
        let stored = entries.iter().find(|entry| entry.key == "general.alignment");
        match stored.map(|entry| entry.decode(self.file)) {
            None => Ok(32),
            Some(Some(super::Value::Unsigned(n))) if n.is_power_of_two() && (8..=65_536).contains(&n) => Ok(n),
            Some(Some(super::Value::Unsigned(n))) => Err(self.damaged(format!("`general.alignment` is {n}, not a power of two"))),
            Some(_) => Err(self.damaged("`general.alignment` is not a number".into())),
        }
    }

    fn tensors(&mut self, count: u64, alignment: u64) -> Result<Vec<Tensor>, GgufError> {
        let mut tensors = Vec::with_capacity(count as usize);
        let mut seen = HashSet::with_capacity(count as usize);
        for n in 0..count {
            let name = self.name(MAX_TENSOR_NAME_BYTES, &format!("tensor {n}"))?;
            if !seen.insert(name.clone()) {
                return Err(self.damaged(format!("tensor `{}` occurs twice", shown(&name))));
            }
            tensors.push(self.tensor(name, alignment)?);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, name: String, alignment: u64) -> Result<Tensor, GgufError> {
        let shown = shown(&name);
        let what = format!("the description of tensor `{shown}`");
        let dim_count = self.u32(&what)?;
        if !(1..=MAX_DIMS).contains(&dim_count) {
            return Err(self.damaged(format!("tensor `{shown}` has {dim_count} dimensions")));
        }
        let mut dims = Vec::with_capacity(MAX_DIMS as usize);
        for _ in 0..dim_count {
            dims.push(self.u64(&what)?);
        }
        let elements = dims.iter().try_fold(1_u64, |product, n| product.checked_mul(*n));
        if elements.is_none_or(|n| n == 0 || n > i64::MAX as u64) {
            return Err(self.damaged(format!("tensor `{shown}` has the impossible shape {dims:?}")));
        }
        let type_id = self.u32(&what)?;
        let Some(tensor_type) = TensorType::from_id(type_id) else {
            return Err(self.damaged(format!(
                "tensor `{shown}` has type {type_id}, which this version does not know (made by a newer tool?)"
            )));
        };
        let Some(bytes) = tensor_type.bytes_of(&dims) else {
            return Err(self.damaged(format!("tensor `{shown}` of type {tensor_type} cannot have the shape {dims:?}")));
        };
        let offset = self.u64(&what)?;
        if offset % alignment != 0 {
            return Err(self.damaged(format!("tensor `{shown}` is not aligned to {alignment} bytes")));
        }
        Ok(Tensor { name, dims, tensor_type, offset, bytes })
    }

    /// Turns offsets within the data into offsets within the file and checks that every tensor lies inside the file.
    fn place(&self, tensors: &mut [Tensor], data_offset: u64) -> Result<(), GgufError> {
        for tensor in tensors {
            let start = data_offset.checked_add(tensor.offset);
            match start.and_then(|start| start.checked_add(tensor.bytes)) {
                Some(end) if end <= self.file.len() as u64 => tensor.offset += data_offset,
                end => {
                    let what = format!("tensor `{}`", shown(&tensor.name));
                    return Err(self.truncated(&what, end.unwrap_or(u64::MAX)));
                }
            }
        }
        Ok(())
    }
}

/// A name from the file as messages show it: short, and without control characters, which a terminal would obey.
fn shown(name: &str) -> String {
    let mut chars = name.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = chars.by_ref().take(MAX_TENSOR_NAME_BYTES as usize).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

/// The likely type of a file without GGUF's first bytes, and the remedy: the usual accidents of downloading.
fn what_instead(file: &[u8]) -> (String, &'static str) {
    let first_line = file.trim_ascii_start();
    if file.is_empty() {
        ("it is empty".into(), "download it again")
    } else if file.len() < 4 && b"GGUF".starts_with(file) {
        ("it ends within its first bytes".into(), "download it again")
    } else if file.starts_with(b"version https://git-lfs") {
        ("it is a Git LFS pointer, not the model".into(), "run `git lfs pull` or download the file itself")
    } else if first_line.starts_with(b"<") {
        ("it is a web page".into(), "use the download link of the file, not the page about it")
    } else if first_line.get(8..).is_some_and(|rest| rest.starts_with(b"{\"")) {
        ("it looks like safetensors".into(), "convert its directory with `vademecum model convert`")
    } else {
        let first: Vec<String> = file.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        (format!("it begins with the bytes {}", first.join(" ")), "give a model in GGUF format")
    }
}
