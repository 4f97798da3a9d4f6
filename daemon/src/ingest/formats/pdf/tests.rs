use super::*;

#[test]
#[ignore = "a tool for looking at a PDF"]
fn show() {
    let path = std::env::var("PDF").unwrap();
    let parsed = parse(std::fs::read(path).unwrap()).unwrap();
    println!("{}", parsed.text);
    eprintln!("{:?} {:?}", parsed.title, parsed.note);
}
