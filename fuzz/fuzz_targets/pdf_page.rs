//! The program of one page inside a sound file: the layout of text at any place.
#![no_main]

use read::formats::PDF;

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    let mut file = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n\
        2 0 obj\n<< /Type /Pages /Count 1 /Kids [3 0 R] >>\nendobj\n\
        3 0 obj\n<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R \
        /Resources << /Font << /F 5 0 R /M 6 0 R >> /XObject << /X 4 0 R >> >> >>\nendobj\n\
        5 0 obj\n<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold >>\nendobj\n\
        6 0 obj\n<< /Type /Font /Subtype /Type1 /BaseFont /Courier >>\nendobj\n"
        .to_vec();
    file.extend_from_slice(format!("4 0 obj\n<< /Subtype /Form /Length {} >>\nstream\n", program.len()).as_bytes());
    file.extend_from_slice(program);
    file.extend_from_slice(b"\nendstream\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n");
    let _ = PDF.parse(file);
});
