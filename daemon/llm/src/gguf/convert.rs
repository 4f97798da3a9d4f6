//! Converts a Hugging Face directory to one GGUF file.
//!
//! Names, types and metadata follow llama.cpp's `convert_hf_to_gguf.py` (class `BertModel`), so that llama.cpp and other GGUF
//! tools load the result. ggml itself writes the container and quantises the weights. The file also carries the whole
//! `tokenizer.json` (standard key `tokenizer.huggingface.json`), so that one file is enough.

mod bert;
mod source;
mod writer;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Gguf, GgufError, ModelReport, TensorType, report};
use source::Directory;

/// Key of the longest input in tokens, special tokens included (`max_seq_length` of sentence-transformers).
pub(crate) const MAX_SEQ_LENGTH: &str = "vademecum.max_seq_length";
/// Key of the complete `tokenizer.json`.
pub(crate) const TOKENIZER_JSON: &str = "tokenizer.huggingface.json";

/// Bytes of source weights in one step: memory is bounded to a few times this.
const STEP_BYTES: usize = 1 << 20;
/// ggml pads every tensor to this.
const ALIGNMENT: usize = 32;

/// Storage of 2-D weights. Norms, biases, positions and token types stay F32, as in llama.cpp's converter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 16-bit floating point: practically exact (cosine to fp32 above 0.9999).
    F16,
    /// 8-bit blocks: a little over half the size of F16 (cosine above 0.998).
    Q8_0,
}

impl Precision {
    fn tensor_type(self) -> TensorType {
        match self {
            Precision::F16 => TensorType::F16,
            Precision::Q8_0 => TensorType::Q8_0,
        }
    }

    /// llama.cpp's `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Precision::F16 => 1,
            Precision::Q8_0 => 7,
        }
    }
}

/// An error of the conversion.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A file that the conversion needs is missing.
    #[error("{path} is missing; {remedy}", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The remedy.
        remedy: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file has wrong contents.
    #[error("{path} is damaged: {what}; download it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault.
        what: String,
    },
    /// A valid model that this converter or llama.cpp does not support.
    #[error("cannot convert {what}; {remedy}")]
    Unsupported {
        /// The unsupported feature.
        what: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// A weight is missing, has the wrong shape or holds values that are not numbers.
    #[error("tensor `{name}` {problem}; the directory has no complete model of the type in config.json")]
    Tensor {
        /// The tensor's name in the directory.
        name: String,
        /// The fault.
        problem: String,
    },
    /// The written file does not pass the reader's own check.
    #[error("the converted file is invalid: {0}")]
    Check(#[from] GgufError),
}

impl ConvertError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ConvertError + '_ {
        move |source| ConvertError::Io { path: path.to_path_buf(), source }
    }
}

/// The outcome of a conversion.
#[derive(Debug, Clone, Serialize)]
pub struct Converted {
    /// The new file, described.
    pub report: ModelReport,
    /// Assumptions and omissions, for the user to read.
    pub notes: Vec<String>,
}

/// Model families that can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Bert,
}

/// A tensor to be written: its source and its form in the file.
#[derive(Debug, Clone)]
struct Planned {
    /// Name in the directory, without a `bert.` prefix.
    source: String,
    /// Name in the GGUF file.
    name: String,
    /// Shape as in the directory: rows, then columns.
    shape: Vec<usize>,
    tensor_type: TensorType,
}

/// Converts the sentence encoder in `dir` to the file `out`.
///
/// `progress` is called with the bytes of source weights done and in all. Memory stays bounded: weights are mapped and pass
/// through in steps of about 1 MiB. `out` appears only when complete: a temporary file beside it is written, synced, checked and
/// renamed.
pub fn convert(dir: &Path, out: &Path, kind: Precision, progress: &mut dyn FnMut(u64, u64)) -> Result<Converted, ConvertError> {
    let directory = Directory::open(dir)?;
    let family = family(&directory)?;
    let mut notes = directory.notes.clone();
    let (header, plan) = match family {
        Family::Bert => bert::plan(&directory, kind, &mut notes)?,
    };
    let part = part_path(out);
    let written = write(&directory, &header, &plan, &part, progress).and_then(|()| {
        let checked = Gguf::open(&part)?;
        let mut summary = report(&checked);
        drop(checked);
        fs::rename(&part, out).map_err(ConvertError::io(out))?;
        sync_directory(out);
        summary.path = out.display().to_string();
        Ok(summary)
    });
    if written.is_err() {
        // A failed conversion leaves nothing behind. The caller needs its error, not that of the removal.
        let _ = fs::remove_file(&part);
    }
    Ok(Converted { report: written?, notes })
}

fn family(directory: &Directory) -> Result<Family, ConvertError> {
    let architectures = &directory.config.architectures;
    match architectures.first().map(String::as_str) {
        Some("BertModel" | "BertForMaskedLM" | "BertForPreTraining") => Ok(Family::Bert),
        None if directory.config.model_type.as_deref() == Some("bert") => Ok(Family::Bert),
        other => Err(ConvertError::Unsupported {
            what: format!(
                "the architecture {} (model type {})",
                other.unwrap_or("that config.json does not name"),
                directory.config.model_type.as_deref().unwrap_or("not given")
            ),
            remedy: "only BERT sentence encoders (BertModel) are converted here; for others take a ready-made GGUF",
        }),
    }
}

fn part_path(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".part{}", std::process::id()));
    out.with_file_name(name)
}

/// A rename is durable once its directory is synced. File systems without that operation only lose the guarantee.
fn sync_directory(out: &Path) {
    let parent = out.parent().filter(|dir| !dir.as_os_str().is_empty());
    if let Ok(dir) = File::open(parent.unwrap_or(Path::new("."))) {
        let _ = dir.sync_all();
    }
}

fn write(
    directory: &Directory,
    header: &writer::Header,
    plan: &[Planned],
    part: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ConvertError> {
    let file = File::create(part).map_err(ConvertError::io(part))?;
    let mut out = BufWriter::with_capacity(STEP_BYTES, file);
    out.write_all(&header.bytes()).map_err(ConvertError::io(part))?;
    let total = plan.iter().map(|planned| directory.weights.bytes_of(&planned.source)).sum();
    let mut done = 0;
    progress(done, total);
    for planned in plan {
        let mut written = 0;
        directory.weights.rows(planned, STEP_BYTES, &mut |rows: &[f32], source_bytes| {
            let stored = writer::encode(planned.tensor_type, rows, planned.shape.last().copied().unwrap_or(1));
            out.write_all(&stored).map_err(ConvertError::io(part))?;
            written += stored.len();
            done += source_bytes;
            progress(done, total);
            Ok(())
        })?;
        let padding = written.next_multiple_of(ALIGNMENT) - written;
        out.write_all(&[0; ALIGNMENT][..padding]).map_err(ConvertError::io(part))?;
    }
    let file = out.into_inner().map_err(|error| ConvertError::Io { path: part.to_path_buf(), source: error.into_error() })?;
    file.sync_all().map_err(ConvertError::io(part))
}

#[cfg(test)]
mod tests;
