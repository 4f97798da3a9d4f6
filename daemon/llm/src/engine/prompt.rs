//! The prompt: the model's own chat template around a system prompt, numbered passages and the question.
//!
//! The template is rendered once with marks in place of the contents and cut at the marks. Its own text may contain control
//! tokens. Text from outside is tokenised separately, with special tokens off, so that no document and no question can open or
//! close a turn.

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use minijinja::{Environment, Error, ErrorKind, context};

const SYSTEM_MARK: &str = "\u{E000}S\u{E000}";
const USER_MARK: &str = "\u{E000}U\u{E000}";

/// A passage as the model sees it, with its frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptPassage {
    /// The document, if other questions read the very same words. The state of the first passage is then kept until the document
    /// is deleted.
    pub document: Option<u64>,
    /// Its text.
    pub text: String,
}

/// One way to answer a question: the passages that the model reads, strongest first. The weakest are left out when they do not
/// fit into the context.
pub type Reading = Vec<PromptPassage>;

/// The end of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The question, never cut.
    pub question: String,
    /// The task, behind the question.
    pub task: String,
}

/// A prompt that fits.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    pub(super) tokens: Vec<LlamaToken>,
    /// Ends of the steps of the computation, ascending; the last is the length. The grouping is always the same: it changes the
    /// rounding, and a greedy answer must not depend on earlier questions.
    pub(super) cuts: Vec<usize>,
    /// The state worth keeping: length of the prefix, and its document.
    pub(super) keep: Option<(usize, u64)>,
    pub(super) passages_used: usize,
}

impl Prompt {
    /// Cuts `tokens` into steps of at most `step`. A new step begins at each of `starts` (ascending).
    pub(super) fn new(tokens: Vec<LlamaToken>, starts: &[usize], step: usize) -> Self {
        let mut cuts = Vec::new();
        let mut at = 0;
        for end in starts.iter().copied().chain([tokens.len()]) {
            while at < end {
                at = end.min(at + step);
                cuts.push(at);
            }
        }
        Self { tokens, cuts, keep: None, passages_used: 0 }
    }

    /// The first cut after `position`.
    pub(super) fn next_cut(&self, position: usize) -> usize {
        self.cuts.iter().copied().find(|cut| *cut > position).unwrap_or(self.tokens.len())
    }
}

/// The prompt does not fit.
pub(super) struct TooLong {
    /// Tokens of the smallest possible prompt.
    pub(super) needed: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Text of the template itself: control tokens count.
    Markup(String),
    System,
    User,
}

/// A chat template, cut into parts.
#[derive(Debug, Clone)]
pub(super) struct Template {
    parts: Vec<Part>,
    own: bool,
}

/// The plain prompt, for a model without a template (a base model).
const PLAIN: [&str; 3] = ["", "\n\n", "\nAnswer:"];

/// Strings that end an answer to the plain prompt: a base model would write the next question.
pub(super) const PLAIN_STOPS: [&str; 2] = ["\n\n", "\nAnswer:"];

/// Tokens of a prompt computed at once. Measured with 640 tokens on two threads: steps of 64 give 0.94 of this speed, 128 give
/// 0.98, 512 give 1.01. The buffers of a batch grow with the step.
pub(super) const STEP: usize = 256;

/// Ends every answer: the model would go on to ask itself the next question.
pub(super) const NEXT_QUESTION: &str = "\nQuestion:";

impl Template {
    /// Cuts the model's template. A missing or unusable template gives the plain prompt.
    pub(super) fn of(model: &LlamaModel) -> Self {
        let source = model.chat_template(None).ok().and_then(|t| t.to_string().ok());
        let bos = special_text(model, model.vocab().bos());
        let eos = special_text(model, model.vocab().eos());
        match source.map(|source| Self::cut(&source, &bos, &eos)) {
            Some(Ok(template)) => template,
            Some(Err(error)) => {
                log::warn!("the model's chat template cannot be used ({error}); a plain prompt is used instead");
                Self::plain()
            }
            None => Self::plain(),
        }
    }

    fn plain() -> Self {
        let [before, between, after] = PLAIN.map(|text| Part::Markup(text.to_owned()));
        Self { parts: vec![before, Part::System, between, Part::User, after], own: false }
    }

    /// Whether the template is the model's own.
    pub(super) fn is_own(&self) -> bool {
        self.own
    }

    fn cut(source: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        let with_system = [("system", SYSTEM_MARK.to_owned()), ("user", USER_MARK.to_owned())];
        let rendered = render(source, &with_system, bos, eos);
        // Some templates (Gemma's) have no system turn: the system prompt then opens the user's turn.
        let rendered = match rendered {
            Ok(text) if text.contains(SYSTEM_MARK) => text,
            _ => render(source, &[("user", format!("{SYSTEM_MARK}\n\n{USER_MARK}"))], bos, eos)?,
        };
        let missing = || Error::new(ErrorKind::InvalidOperation, "it does not keep the messages' contents");
        let (before, rest) = rendered.split_once(SYSTEM_MARK).ok_or_else(missing)?;
        let (between, after) = rest.split_once(USER_MARK).ok_or_else(missing)?;
        if after.contains(USER_MARK) || rest.contains(SYSTEM_MARK) {
            return Err(Error::new(ErrorKind::InvalidOperation, "it repeats the messages' contents"));
        }
        let markup = |text: &str| Part::Markup(text.to_owned());
        Ok(Self { parts: vec![markup(before), Part::System, markup(between), Part::User, markup(after)], own: true })
    }

    /// The prefix common to all questions: the tokens up to and including the system prompt.
    pub(super) fn prefix(&self, model: &LlamaModel, system: &str) -> Vec<LlamaToken> {
        self.tokens_until(model, system, None)
    }

    /// Tokens of the whole prompt around `user`, the already tokenised user turn.
    pub(super) fn tokens(&self, model: &LlamaModel, system: &str, user: &[LlamaToken]) -> Vec<LlamaToken> {
        self.tokens_until(model, system, Some(user))
    }

    /// Lays out a prompt of at most `room` tokens. The weakest passages are left out until it fits.
    ///
    /// Steps of the computation begin behind the system prompt, the first passage, the last passage and the question, so that
    /// another prompt with the same beginning finds its state.
    ///
    /// # Errors
    /// Not even the first passage fits.
    pub(super) fn lay_out(
        &self,
        model: &LlamaModel,
        system: &str,
        reading: &[PromptPassage],
        asked: &Asked,
        room: usize,
    ) -> Result<Prompt, TooLong> {
        let question = data_tokens(model, &asked.question);
        let task = data_tokens(model, &asked.task);
        let anchor = self.prefix(model, system).len();
        let fixed = self.tokens(model, system, &[]).len() + question.len() + task.len();
        let mut user = Vec::new();
        let mut starts = vec![anchor];
        let mut passages_used = 0;
        for (i, passage) in reading.iter().enumerate() {
            let tokens = data_tokens(model, &passage.text);
            if fixed + user.len() + tokens.len() > room {
                if i == 0 {
                    return Err(TooLong { needed: fixed + tokens.len() });
                }
                let (out, all) = (reading.len() - i, reading.len());
                log::info!("{out} of {all} passages do not fit into the context and are left out");
                break;
            }
            user.extend(tokens);
            passages_used = i + 1;
            if i == 0 {
                starts.push(anchor + user.len());
            }
        }
        let document = reading.first().and_then(|passage| passage.document);
        let keep = document.zip(starts.get(1).copied()).map(|(document, upto)| (upto, document));
        starts.push(anchor + user.len());
        user.extend(question);
        starts.push(anchor + user.len());
        user.extend(task);
        let tokens = self.tokens(model, system, &user);
        if tokens.len() > room {
            return Err(TooLong { needed: tokens.len() });
        }
        let mut prompt = Prompt::new(tokens, &starts, STEP);
        prompt.keep = keep;
        prompt.passages_used = passages_used;
        Ok(prompt)
    }

    fn tokens_until(&self, model: &LlamaModel, system: &str, user: Option<&[LlamaToken]>) -> Vec<LlamaToken> {
        let vocab = model.vocab();
        let mut tokens = Vec::new();
        for part in &self.parts {
            match (part, user) {
                (Part::Markup(text), _) => tokens.extend(vocab.tokenize(text.as_bytes(), false, true)),
                (Part::System, _) => tokens.extend(data_tokens(model, system)),
                (Part::User, Some(user)) => tokens.extend_from_slice(user),
                (Part::User, None) => break,
            }
        }
        if vocab.should_add_bos() && tokens.first() != Some(&vocab.bos()) {
            tokens.insert(0, vocab.bos());
        }
        tokens
    }
}

/// Tokens of text from outside. Special tokens are off, so that `<|im_end|>` stays plain characters.
pub(super) fn data_tokens(model: &LlamaModel, text: &str) -> Vec<LlamaToken> {
    model.vocab().tokenize(text.as_bytes(), false, false)
}

fn special_text(model: &LlamaModel, token: LlamaToken) -> String {
    model.vocab().text(token).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn render(source: &str, messages: &[(&str, String)], bos: &str, eos: &str) -> Result<String, Error> {
    let mut env = Environment::new();
    // Templates are written for Python's Jinja with these two options on.
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_fuel(Some(1_000_000));
    env.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_template("chat", source)?;
    let messages: Vec<_> = messages.iter().map(|(role, content)| context! { role, content }).collect();
    env.get_template("chat")?.render(context! { messages, add_generation_prompt => true, bos_token => bos, eos_token => eos })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    const NO_SYSTEM: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}";

    fn markup(template: &Template) -> Vec<String> {
        template
            .parts
            .iter()
            .map(|p| match p {
                Part::Markup(text) => text.clone(),
                Part::System => "S".into(),
                Part::User => "U".into(),
            })
            .collect()
    }

    #[test]
    fn a_template_is_cut_at_its_contents() {
        let template = Template::cut(CHATML, "", "").expect("cut");
        assert_eq!(
            markup(&template),
            ["<|im_start|>system\n", "S", "<|im_end|>\n<|im_start|>user\n", "U", "<|im_end|>\n<|im_start|>assistant\n"]
        );
    }

    #[test]
    fn without_a_system_turn_the_user_turn_has_it() {
        let template = Template::cut(NO_SYSTEM, "<bos>", "").expect("cut");
        assert_eq!(markup(&template), ["<bos><start_of_turn>user\n", "S", "\n\n", "U", "<end_of_turn>\n<start_of_turn>model\n"]);
    }

    #[test]
    fn steps_are_the_same_whatever_is_reused() {
        for (starts, len) in [(vec![30], 300), (vec![0], 64), (vec![64], 65), (vec![40, 200], 230), (vec![130, 131], 400)] {
            let prompt = Prompt::new(vec![LlamaToken(0); len], &starts, STEP);
            assert_eq!(prompt.cuts.last(), Some(&len));
            assert!(starts.iter().all(|start| *start == 0 || prompt.cuts.contains(start)), "{starts:?}");
            let steps = std::iter::once(0).chain(prompt.cuts.iter().copied()).collect::<Vec<_>>();
            assert!(steps.windows(2).all(|w| w[0] < w[1] && w[1] - w[0] <= STEP));
            assert!(prompt.cuts.iter().all(|cut| *cut == len || prompt.cuts.contains(&prompt.next_cut(*cut))));
        }
    }

    #[test]
    fn hostile_templates_are_refused() {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "no content",
            "{{ messages",
            "{{ messages[1].content }}{{ messages[1].content }}",
        ] {
            assert!(Template::cut(source, "", "").is_err(), "{source}");
        }
    }
}
