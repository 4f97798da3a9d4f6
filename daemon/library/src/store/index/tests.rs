use std::collections::HashMap;

use super::super::row;
use super::*;

const DIMENSIONS: usize = 8;

fn origin() -> Origin {
    Origin { store: 1, embedder: "e".to_owned(), terms: 1, version: 9 }
}

fn document(number: u64) -> IndexedDocument {
    let tags = BTreeMap::from([("parity".to_owned(), (number % 2).to_string())]);
    IndexedDocument { id: format!("d{number}"), number, tags, language: Language::English }
}

/// The row bytes of chunk `ordinal` of document `number`.
fn bytes(number: u64, ordinal: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number * 1000 + u64::from(ordinal));
    let vector: Vec<f32> = (0..DIMENSIONS).map(|_| random.f32() - 0.5).collect();
    let words: Vec<String> = (0..random.usize(1..30)).map(|_| format!("w{}", random.u32(0..40).pow(2) / 40)).collect();
    row::encode(&vector, &format!("title{}", number % 3), &words.join(" "), Language::English)
}

fn rows_of(number: u64) -> u32 {
    // Some documents have no rows.
    (number % 7) as u32
}

fn add(index: &mut Index, number: u64) {
    index.add_document(document(number));
    for ordinal in 0..rows_of(number) {
        index.append(&row::decode(&bytes(number, ordinal)).unwrap()).unwrap();
    }
}

/// All that a search can see, by document and ordinal.
fn seen(index: &Index) -> Vec<String> {
    let query = Query::new(&[0.3, -0.2, 0.1, 0.7, -0.5, 0.2, 0.1, 0.4]);
    let mut terms: HashMap<u32, Vec<String>> = HashMap::new();
    let words = (0..40).map(|n| format!("w{n}")).chain((0..3).map(|n| format!("title{n}")));
    let mut seen = vec![format!("{:?}", index.mean_lengths())];
    for word in words.chain(["absent".to_owned()]) {
        let postings: Vec<Posting> = index.postings(&word).collect();
        assert!(postings.is_sorted_by(|a, b| a.row < b.row));
        let live = postings.iter().filter(|posting| index.live().contains(posting.row));
        assert_eq!(live.count() as u32, index.document_frequency(&word));
        for posting in postings {
            terms.entry(posting.row).or_default().push(format!("{word}:{}:{}", posting.head, posting.body));
        }
    }
    let neighbours = index.nearest(&query, index.rows(), index.live());
    assert_eq!(neighbours.len() as u64, index.live().len());
    for (row, cosine) in neighbours {
        let place = index.place(row);
        let document = index.document(place.slot).unwrap();
        assert!((index.cosine(&query, row) - cosine).abs() < 1e-9);
        let (lengths, words) = (index.lengths(row), terms.get(&row));
        seen.push(format!("{} {} {cosine} {lengths:?} {:?} {words:?}", document.number, place.ordinal, document.tags));
    }
    seen.sort();
    seen
}

#[test]
fn a_written_index_is_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.index");
    let mut index = Index::new(DIMENSIONS, 1);
    for number in 1..60 {
        add(&mut index, number);
    }
    index.write(&path, &origin()).unwrap();
    let (opened, version) = Index::open(&path, &origin(), 1).unwrap();
    assert_eq!((version, opened.rows(), opened.changed_rows()), (9, index.rows(), 0));
    assert_eq!(seen(&opened), seen(&index));
}

#[test]
fn merging_in_steps_equals_writing_once() {
    let dir = tempfile::tempdir().unwrap();
    let (stepwise, once) = (dir.path().join("stepwise.index"), dir.path().join("once.index"));
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..10 {
        let mut index = Index::new(DIMENSIONS, 1);
        let mut kept: Vec<u64> = Vec::new();
        for number in 1..120 {
            add(&mut index, number);
            kept.push(number);
            if random.u8(0..3) == 0 {
                index.remove_document(kept.swap_remove(random.usize(0..kept.len())));
            }
            if random.u8(0..20) == 0 {
                index.write(&stepwise, &origin()).unwrap();
                let before = seen(&index);
                index = Index::open(&stepwise, &origin(), 1).unwrap().0;
                assert_eq!(seen(&index), before);
            }
        }
        kept.sort_unstable();
        let mut fresh = Index::new(DIMENSIONS, 1);
        for number in &kept {
            add(&mut fresh, *number);
        }
        assert_eq!(seen(&index), seen(&fresh));
        index.write(&stepwise, &origin()).unwrap();
        fresh.write(&once, &origin()).unwrap();
        assert_eq!(std::fs::read(&stepwise).unwrap(), std::fs::read(&once).unwrap());
    }
}

#[test]
fn removed_documents_are_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.index");
    let mut index = Index::new(DIMENSIONS, 1);
    (1..40).for_each(|number| add(&mut index, number));
    index.write(&path, &origin()).unwrap();
    let mut index = Index::open(&path, &origin(), 1).unwrap().0;
    (40..80).for_each(|number| add(&mut index, number));
    for number in [3, 20, 41, 79, 79, 500] {
        index.remove_document(number);
    }
    let rows: u32 = (1..80).filter(|number| ![3, 20, 41, 79].contains(number)).map(rows_of).sum();
    assert_eq!(index.live().len(), u64::from(rows));
    seen(&index);
    let odd = index.select(|document| document.tags["parity"] == "1");
    let expected: u32 = (1..80).filter(|number| number % 2 == 1 && ![3, 41, 79].contains(number)).map(rows_of).sum();
    assert_eq!(odd.len(), u64::from(expected));
    assert!(odd.iter().all(|row| index.document(index.place(row).slot).unwrap().number % 2 == 1));
    let none = index.nearest(&Query::new(&[1.0; DIMENSIONS]), 5, &index.select(|_| false));
    assert!(none.is_empty());
    assert!(index.nearest(&Query::new(&[1.0; 3]), 5, index.live()).is_empty(), "another length");
    index.retain_documents(&HashSet::from([5, 6, 45]));
    assert_eq!(index.live().len(), u64::from(rows_of(5) + rows_of(6) + rows_of(45)));
}

#[test]
fn a_file_of_other_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.index");
    let mut index = Index::new(DIMENSIONS, 1);
    add(&mut index, 5);
    index.write(&path, &origin()).unwrap();
    assert!(Index::open(&path, &Origin { version: 10, ..origin() }, 1).is_ok_and(|(_, version)| version == 9));
    for other in [
        Origin { store: 2, ..origin() },
        Origin { embedder: "f".to_owned(), ..origin() },
        Origin { terms: 2, ..origin() },
        Origin { version: 8, ..origin() },
    ] {
        assert!(matches!(Index::open(&path, &other, 1), Err(Unusable::Unfit(_))));
    }
    assert!(matches!(Index::open(&dir.path().join("absent"), &origin(), 1), Err(Unusable::Missing)));
}

#[test]
fn a_row_of_another_shape_is_not_taken() {
    let mut index = Index::new(DIMENSIONS, 1);
    let row = row::encode(&[1.0], "", "", Language::English);
    assert!(index.append(&row::decode(&row).unwrap()).is_none(), "no document yet");
    index.add_document(document(1));
    assert!(index.append(&row::decode(&row).unwrap()).is_none());
    assert_eq!((index.rows(), index.live().len()), (0, 0));
}
