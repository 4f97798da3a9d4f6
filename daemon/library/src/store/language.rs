//! The language of a text, told by its commonest words. For more than some fifteen words they tell languages apart as well as
//! letter trigrams do (Grefenstette 1995, "Comparing two language identification schemes"). The same lists are the stop words
//! of [`super::terms`].
//!
//! The lists are short on purpose. They leave out words like `on off no not up down`: a manual names switch positions and
//! directions with them. Words that are mostly grammar stay (`in`, `of`, `to`). Words are written without diacritics, as
//! [`super::terms`] folds them.

use std::collections::HashMap;
use std::sync::LazyLock;

use rust_stemmers::{Algorithm, Stemmer};
use serde::{Deserialize, Serialize};

/// A language with a stemmer. Text in any other language is treated as English: its words are folded, and few of them stemmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Language {
    #[default]
    #[serde(rename = "en")]
    English,
    #[serde(rename = "ar")]
    Arabic,
    #[serde(rename = "da")]
    Danish,
    #[serde(rename = "nl")]
    Dutch,
    #[serde(rename = "fi")]
    Finnish,
    #[serde(rename = "fr")]
    French,
    #[serde(rename = "de")]
    German,
    #[serde(rename = "el")]
    Greek,
    #[serde(rename = "hu")]
    Hungarian,
    #[serde(rename = "it")]
    Italian,
    #[serde(rename = "no")]
    Norwegian,
    #[serde(rename = "pt")]
    Portuguese,
    #[serde(rename = "ro")]
    Romanian,
    #[serde(rename = "ru")]
    Russian,
    #[serde(rename = "es")]
    Spanish,
    #[serde(rename = "sv")]
    Swedish,
    #[serde(rename = "ta")]
    Tamil,
    #[serde(rename = "tr")]
    Turkish,
}

use Language as L;

/// Every language in the order of the enum, with its Snowball stemmer and its stop words.
const LANGUAGES: [(Language, Algorithm, &str); 18] = [
    (
        L::English,
        Algorithm::English,
        "a about an and any are as at be been but by can could did do does for from had has have he her his how i if in into is it \
         its may me my of or our s she should so such t than that the their them then there these they this those to was we were \
         what when where which who why will with would you your yours",
    ),
    (L::Arabic, Algorithm::Arabic, "ان او التي الذي الى اي عن على في قد كان كل كما كيف لا لم ما مع من هذا هذه هل هو هي و"),
    (
        L::Danish,
        Algorithm::Danish,
        "af at blev bliver da de dem den denne der deres det dette du eller en er et for fra har have hvad hvilken hvor hvordan \
         hvorfor hvornar hvis jeg kan man med men nar og om pa sa sig skal skulle som til var ved vi vil",
    ),
    (
        L::Dutch,
        Algorithm::Dutch,
        "als bij dat de deze die dit door dus een en er had heb hebben heeft het hij hoe ik is kan kunnen maar me met mijn moet of \
         om ook te u uw van voor waar waarom wanneer wat we welke werd wie wij wordt worden ze zich zij zijn zou",
    ),
    (
        L::Finnish,
        Algorithm::Finnish,
        "ei eli etta ha han ja jo joka jos jotka kuin kuinka kun ma me mika mikali miksi milla milloin mina missa mita miten mutta \
         myos ne niin nyt oli olla on ovat se seka sen sina sita taman tama te tai vain voi voiko",
    ),
    (
        L::French,
        Algorithm::French,
        "a ai au aux avec c ce ces cet cette comment d dans de des donc du elle elles en est et etre eux fait il ils j je l la le \
         les leur leurs lors lui m ma mais me mes mon n ne nos notre nous on ont ou par pour pourquoi qu quand que quel quelle \
         quelles quels qui quoi s sa se ses si son sont sur t ta te tes ton tu un une vos votre vous y",
    ),
    (
        L::German,
        Algorithm::German,
        "aber als am auch bei beim bin bis da damit dann das dass dem den denn der des deshalb die dies diese diesem diesen dieser \
         dieses doch du durch eine einem einen einer eines er es fur hat hatte ich ihm ihn ihr ihre ihrem ihren ihrer im in ist ja \
         kann konnen man mein meine mich mir mit muss mussen nach oder sein seine sich sie sind so soll sollte sowie uber um und \
         uns vom von war waren warum was welche welchem welchen welcher welches wenn wer werden wie wieso wir wird wo wurde wurden \
         zum zur",
    ),
    (
        L::Greek,
        Algorithm::Greek,
        "αν απο αυτο για δε δεν ειναι εγω εναν ενα η θα και κατα με μια μου μπορω να ο οι οταν οπου οπως οσο οτι που πρεπει πωσ \
         σε στα στη στην στισ στο στον τα τη την τησ τι το τον του τουσ των ωσ",
    ),
    (
        L::Hungarian,
        Algorithm::Hungarian,
        "a az azt de egy ek es ez ezt ha hogy hogyan hol igy is kell lehet majd meg mely melyik mert mi miert mikor mint mit nem \
         ok olyan s sem van vagy volt",
    ),
    (
        L::Italian,
        Algorithm::Italian,
        "a ad agli ai al alla alle allo anche c che chi ci come con cosa cui d da dagli dai dal dalla dalle dei degli del dell della \
         delle dello di dove e ed era gli ha hanno ho i il in io l la le lei li lo loro lui ma mi mia mio ne nei nel nell nella \
         nelle noi o per perche piu puo qual quale quali quando quello questa queste questi questo se si sia sono su sua sue sul \
         sulla suo tra tu un una uno vi voi",
    ),
    (
        L::Norwegian,
        Algorithm::Norwegian,
        "at av ble blir da de deg dem den denne der deres det dette du eller en er et etter for fra har hva hvem hvilken hvis hvor \
         hvordan hvorfor jeg kan man med meg men mot nar og om pa sa seg skal skulle som til var ved vi vil",
    ),
    (
        L::Portuguese,
        Algorithm::Portuguese,
        "a ao aos as com como da das de do dos e ela ele eles em entre era essa esse esta este eu foi ha isso isto ja lhe mais mas \
         me meu minha na nas nem no nos o onde os ou para pela pelas pelo pelos pode por porque qual quais quando que quem se \
         sao sem ser seu seus sua suas tem um uma voce",
    ),
    (
        L::Romanian,
        Algorithm::Romanian,
        "a acest aceasta aceste acesti ai al ale am ar are as au ca care ce cel cele cu cum cand da daca de din dupa ea ei el ele \
         este eu fi fie fost il in isi la le lui mai ne ni noi o or pe pentru pot prin sa sau se si sunt un unde unei unui va \
         voi",
    ),
    (
        L::Russian,
        Algorithm::Russian,
        "а бы был была были было быть в вам вас во вот все вы где для до его ее если есть еще же за и из или им их к как какая \
         какие какои когда кто ли мне можно мои мы на не него нее но о об он она они от по почему при с со та так также тем то \
         тоже только ты у чем что чтобы эта эти это этого этои этот я",
    ),
    (
        L::Spanish,
        Algorithm::Spanish,
        "a al como con cual cuales cuando de del desde donde e el ella ellas ellos en entre era es esa ese eso esta estan este esto \
         fue ha hay la las le les lo los mas me mi muy ni nos o para pero por porque puede puedo que quien se sea ser si sin sobre \
         son su sus te tiene tu u un una uno y ya yo",
    ),
    (
        L::Swedish,
        Algorithm::Swedish,
        "ar att av blev blir da dar de dem den denna det detta dig din du efter eller en ett fran for ha han har hon hur i inte \
         jag kan man med men mig mot nar och om oss pa sa sig ska skall som till under vad var varfor vem vi vid vilken vilka",
    ),
    (L::Tamil, Algorithm::Tamil, "அது அந்த இது இந்த உள்ள எந்த என என்ன என்று எப்படி ஒரு மற்றும்"),
    (
        L::Turkish,
        Algorithm::Turkish,
        "acaba ama bir biz bu bunu cok da daha de degil diye en gibi hangi hem her icin ile ise kadar ki kim mi mu nasil ne neden \
         nedir nerede o olan olarak oldugu onu sen siz su tum ve veya ya",
    ),
];

/// Each stop word with one bit per language it belongs to.
static STOP_WORDS: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| {
    let mut words: HashMap<&str, u32> = HashMap::new();
    for (language, _, list) in LANGUAGES {
        for word in list.split_whitespace() {
            *words.entry(word).or_default() |= 1 << language as u32;
        }
    }
    words
});

/// Most words read to tell a text's language.
const SAMPLE_WORDS: usize = 2000;
/// Least share of common words in running text. Lists of parts and tables have fewer.
const LEAST_SHARE: f32 = 0.1;
/// Fewer words tell nothing about a document.
const LEAST_WORDS: usize = 8;

impl Language {
    /// Every language.
    pub(super) fn all() -> [Language; LANGUAGES.len()] {
        LANGUAGES.map(|(language, _, _)| language)
    }

    /// The language of a document's folded words: the one with most of them among its commonest, or English if none stands out.
    pub(super) fn of_document<'a>(words: impl Iterator<Item = &'a str>) -> Language {
        let (counts, seen) = count(words.take(SAMPLE_WORDS));
        let best = most(&counts, LANGUAGES.iter().map(|(language, _, _)| *language)).unwrap_or_default();
        let clear = seen >= LEAST_WORDS && counts[best as usize] as f32 >= LEAST_SHARE * seen as f32;
        if clear { best } else { Language::English }
    }

    /// The language of a question's folded words, among some; `None` when they hold no common word of any.
    pub(super) fn of_question<'a>(words: impl Iterator<Item = &'a str>, among: &[Language]) -> Option<Language> {
        let (counts, _) = count(words);
        most(&counts, among.iter().copied()).filter(|&best| counts[best as usize] > 0)
    }

    /// Whether a folded word is too common in this language to tell passages apart.
    pub(super) fn is_stop_word(self, word: &str) -> bool {
        STOP_WORDS.get(word).is_some_and(|languages| languages & (1 << self as u32) != 0)
    }

    /// The language's stemmer.
    pub(super) fn stemmer(self) -> Stemmer {
        let (_, algorithm, _) = LANGUAGES[self as usize];
        Stemmer::create(algorithm)
    }
}

/// Number of the words that are stop words of each language, and number of all words.
fn count<'a>(words: impl Iterator<Item = &'a str>) -> ([usize; LANGUAGES.len()], usize) {
    let mut counts = [0; LANGUAGES.len()];
    let mut seen = 0;
    for word in words {
        seen += 1;
        let languages = STOP_WORDS.get(word).copied().unwrap_or(0);
        for (at, count) in counts.iter_mut().enumerate() {
            *count += usize::from(languages & (1 << at) != 0);
        }
    }
    (counts, seen)
}

/// The language with the highest count, the first of equals.
fn most(counts: &[usize], among: impl Iterator<Item = Language>) -> Option<Language> {
    among.fold(None, |best: Option<Language>, language| match best {
        Some(best) if counts[best as usize] >= counts[language as usize] => Some(best),
        _ => Some(language),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_languages() {
        for (at, (language, _, _)) in LANGUAGES.iter().enumerate() {
            assert_eq!(*language as usize, at);
        }
        let names: std::collections::BTreeSet<String> =
            LANGUAGES.iter().filter_map(|(language, _, _)| serde_json::to_string(language).ok()).collect();
        assert_eq!(names.len(), LANGUAGES.len(), "{names:?}");
    }

    #[test]
    fn a_sentence_or_two_tell_the_language() {
        let texts = [
            (
                L::English,
                "The pump is switched off by the controller when the pressure in the circuit is too high. Check the filter.",
            ),
            (
                L::German,
                "Die Pumpe wird von der Regelung ausgeschaltet, wenn der Druck im Kreis zu hoch ist. Prufen Sie den Filter.",
            ),
            (
                L::French,
                "La pompe est arretee par le regulateur quand la pression dans le circuit est trop elevee. Verifiez le filtre.",
            ),
            (
                L::Spanish,
                "El regulador apaga la bomba cuando la presion del circuito es demasiado alta. Compruebe el filtro de la bomba.",
            ),
            (
                L::Italian,
                "La pompa viene spenta dal regolatore quando la pressione nel circuito e troppo alta. Controllare il filtro.",
            ),
            (
                L::Dutch,
                "De pomp wordt door de regelaar uitgeschakeld als de druk in het circuit te hoog is. Controleer het filter.",
            ),
            (L::Swedish, "Pumpen stangs av styrenheten nar trycket i kretsen ar for hogt. Kontrollera filtret och pumpen."),
            (
                L::Danish,
                "Pumpen bliver slukket af styringen, hvis trykket i kredsen er for hojt. Kontroller filteret, hvis det er snavset.",
            ),
            (
                L::Portuguese,
                "A bomba e desligada pelo regulador quando a pressao no circuito e muito alta. Verifique o filtro da bomba.",
            ),
            (
                L::Russian,
                "Насос отключается регулятором, если давление в контуре слишком высокое. Проверьте фильтр и насос на утечки.",
            ),
        ];
        for (language, text) in texts {
            let folded = text.to_lowercase();
            let words = || folded.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
            assert_eq!(Language::of_document(words()), language, "{text}");
            assert_eq!(Language::of_question(words(), &[L::English, language]), Some(language), "{text}");
        }
        assert_eq!(Language::of_document("m3x10 e42 e43 e44 e45 e46 e47 e48 e49".split(' ')), L::English);
        assert_eq!(Language::of_question("e42".split(' '), &[L::English, L::German]), None);
    }
}
