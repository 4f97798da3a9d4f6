//! A safe interface to ggml's own GGUF writer and quantisation.

use std::ffi::{CString, c_char};
use std::ptr;

use llama_cpp_sys_2 as sys;

use super::{ConvertError, TensorType};

/// The header, metadata and tensor descriptions of a file to be written.
pub(super) struct Header {
    gguf: *mut sys::gguf_context,
    /// Holds the tensor descriptions, no data.
    ggml: *mut sys::ggml_context,
    room: usize,
}

impl Header {
    /// An empty header with room for this many tensors.
    pub(super) fn new(tensors: usize) -> Header {
        // SAFETY: `ggml_init` allocates the arena itself; with `no_alloc` a tensor takes `ggml_tensor_overhead()` bytes
        // of it, and one spare covers the arena's own alignment. Both contexts are owned here and freed in `drop`.
        unsafe {
            let params = sys::ggml_init_params {
                mem_size: (tensors + 1) * sys::ggml_tensor_overhead(),
                mem_buffer: ptr::null_mut(),
                no_alloc: true,
            };
            Header { gguf: sys::gguf_init_empty(), ggml: sys::ggml_init(params), room: tensors }
        }
    }

    pub(super) fn text(&mut self, key: &str, value: &str) -> Result<(), ConvertError> {
        let (key, value) = (c_string(key, key)?, c_string(key, value)?);
        // SAFETY: `gguf` is live, both strings end in zero and are copied.
        unsafe { sys::gguf_set_val_str(self.gguf, key.as_ptr(), value.as_ptr()) };
        Ok(())
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) -> Result<(), ConvertError> {
        let key = c_string(key, key)?;
        // SAFETY: `gguf` is live and the key ends in zero.
        unsafe { sys::gguf_set_val_u32(self.gguf, key.as_ptr(), value) };
        Ok(())
    }

    pub(super) fn f32(&mut self, key: &str, value: f32) -> Result<(), ConvertError> {
        let key = c_string(key, key)?;
        // SAFETY: `gguf` is live and the key ends in zero.
        unsafe { sys::gguf_set_val_f32(self.gguf, key.as_ptr(), value) };
        Ok(())
    }

    pub(super) fn boolean(&mut self, key: &str, value: bool) -> Result<(), ConvertError> {
        let key = c_string(key, key)?;
        // SAFETY: `gguf` is live and the key ends in zero.
        unsafe { sys::gguf_set_val_bool(self.gguf, key.as_ptr(), value) };
        Ok(())
    }

    pub(super) fn i32s(&mut self, key: &str, values: &[i32]) -> Result<(), ConvertError> {
        let key = c_string(key, key)?;
        // SAFETY: `values` holds `len` integers of the announced type; they are copied.
        unsafe {
            sys::gguf_set_arr_data(self.gguf, key.as_ptr(), sys::GGUF_TYPE_INT32, values.as_ptr().cast(), values.len());
        }
        Ok(())
    }

    pub(super) fn texts(&mut self, key: &str, values: &[String]) -> Result<(), ConvertError> {
        let strings = values.iter().map(|value| c_string(key, value)).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<*const c_char> = strings.iter().map(|string| string.as_ptr()).collect();
        let key = c_string(key, key)?;
        // SAFETY: `pointers` holds `len` pointers to strings that end in zero and live in `strings`; they are copied.
        unsafe {
            sys::gguf_set_arr_str(self.gguf, key.as_ptr(), pointers.as_mut_ptr(), pointers.len());
        };
        Ok(())
    }

    /// Describes the next tensor; `shape` is rows, then columns.
    pub(super) fn add_tensor(&mut self, name: &str, tensor_type: TensorType, shape: &[usize]) -> Result<(), ConvertError> {
        let dims: Vec<i64> = shape.iter().rev().map(|n| *n as i64).collect();
        let c_name = c_string(name, name)?;
        // ggml aborts on a full arena, a name of 64 bytes or more, or one that occurs twice.
        // SAFETY: `gguf` is live and the name ends in zero.
        let taken = unsafe { sys::gguf_find_tensor(self.gguf, c_name.as_ptr()) } >= 0;
        if self.room == 0 || name.len() > 63 || taken || dims.is_empty() || dims.len() > 4 {
            return Err(ConvertError::Tensor {
                name: name.to_owned(),
                problem: "cannot be described in GGUF (name too long or not unique, or too many dimensions)".into(),
            });
        }
        self.room -= 1;
        // SAFETY: both contexts are live, the arena has room, `dims` holds as many numbers as announced.
        unsafe {
            let tensor = sys::ggml_new_tensor(self.ggml, tensor_type.id, dims.len() as i32, dims.as_ptr());
            sys::ggml_set_name(tensor, c_name.as_ptr());
            sys::gguf_add_tensor(self.gguf, tensor);
        }
        Ok(())
    }

    /// The beginning of the file up to the first tensor's data, padded.
    pub(super) fn bytes(&self) -> Vec<u8> {
        // SAFETY: `gguf` is live, and the second call fills exactly the number of bytes the first one returns.
        unsafe {
            let mut bytes = vec![0; sys::gguf_get_meta_size(self.gguf)];
            sys::gguf_get_meta_data(self.gguf, bytes.as_mut_ptr().cast());
            bytes
        }
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: both were made in `new` and are freed once.
        unsafe {
            sys::gguf_free(self.gguf);
            sys::ggml_free(self.ggml);
        }
    }
}

fn c_string(key: &str, text: &str) -> Result<CString, ConvertError> {
    CString::new(text).map_err(|_| ConvertError::Unsupported {
        what: format!("a zero byte in a string for `{key}`"),
        remedy: "GGUF tools cannot read such strings: correct the tokenizer or the model card",
    })
}

/// Stores whole rows of `columns` numbers in the given type (one of those of [`super::Precision`], or F32).
pub(super) fn encode(tensor_type: TensorType, rows: &[f32], columns: usize) -> Vec<u8> {
    match tensor_type {
        TensorType::F16 => rows.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        TensorType::Q8_0 => quantize(rows, columns),
        _ => rows.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn quantize(rows: &[f32], columns: usize) -> Vec<u8> {
    let mut stored = vec![0; rows.len() / 32 * 34];
    // SAFETY: `rows` holds whole rows, a multiple of 32 long (`weight_type` sees to it); each 32 numbers give 34 bytes.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            TensorType::Q8_0.id,
            rows.as_ptr(),
            stored.as_mut_ptr().cast(),
            0,
            (rows.len() / columns) as i64,
            columns as i64,
            ptr::null(),
        )
    };
    debug_assert_eq!(written, stored.len());
    stored
}
