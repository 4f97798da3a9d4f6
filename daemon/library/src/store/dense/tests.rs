use std::collections::HashSet;
use std::path::PathBuf;

use super::*;

const DIMENSIONS: usize = 64;

/// Unit vectors around `rows / 40` centres, like embeddings of texts on so many subjects.
fn clustered(rows: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut point = |centre: Option<&Vec<f32>>| {
        let raw: Vec<f32> = (0..DIMENSIONS)
            .map(|at| (0..6).map(|_| random.f32() - 0.5).sum::<f32>() + centre.map_or(0.0, |centre: &Vec<f32>| centre[at] * 6.0))
            .collect();
        let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
        raw.into_iter().map(|value| value / length).collect::<Vec<f32>>()
    };
    let centres: Vec<Vec<f32>> = (0..(rows / 40).max(1)).map(|_| point(None)).collect();
    (0..rows).map(|row| point(Some(&centres[row % centres.len()]))).collect()
}

fn index(vectors: &[Vec<f32>]) -> (tempfile::TempDir, PathBuf, DenseIndex) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.index");
    DenseIndex::build(&path, DIMENSIONS, vectors.iter().map(Vec::as_slice)).unwrap();
    let index = DenseIndex::open(&path).unwrap();
    (dir, path, index)
}

/// The nearest by the definition, in single precision.
fn exact(vectors: &[Vec<f32>], query: &[f32], count: usize, accept: impl Fn(u32) -> bool) -> Vec<(u32, f32)> {
    let product = |vector: &Vec<f32>| vector.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
    let mut all: Vec<(u32, f32)> =
        (0..).zip(vectors).filter(|(row, _)| accept(*row)).map(|(row, vector)| (row, product(vector))).collect();
    all.sort_by(best_first);
    all.truncate(count);
    all
}

#[test]
fn small_indexes_are_scanned_exactly() {
    for rows in [0, 1, 31, 32, 33, 500] {
        let vectors = clustered(rows, 1);
        let (_dir, _, index) = index(&vectors);
        let query = &clustered(1, 9)[0];
        assert_eq!((index.rows(), index.dimensions()), (rows, DIMENSIONS));
        let even: RoaringBitmap = (0..rows as u32).filter(|row| row % 2 == 0).collect();
        for (filter, accept) in [(None, 1), (Some(&even), 2)] {
            let found = index.search(query, 10, filter, 1);
            let expected = exact(&vectors, query, 10, |row| row % accept == 0);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found.1 - expected.1).abs() < 0.01, "{found:?} {expected:?}");
            }
        }
        assert!(index.search(&[1.0], 10, None, 1).is_empty(), "another length");
    }
}

#[test]
fn the_first_pass_finds_what_an_exact_scan_finds() {
    let vectors = clustered(EXACT_ROWS as usize + 5000, 2);
    let (_dir, _, index) = index(&vectors);
    let third: RoaringBitmap = (0..vectors.len() as u32).filter(|row| row % 8 != 0).collect();
    let (mut found, mut wanted) = (0, 0);
    for query in clustered(40, 2) {
        for (filter, accept) in [(None, u32::MAX), (Some(&third), 8)] {
            let expected: HashSet<u32> =
                exact(&vectors, &query, 10, |row| accept == u32::MAX || row % accept != 0).iter().map(|(row, _)| *row).collect();
            let hits = index.search(&query, 10, filter, 1);
            assert_eq!(hits, index.search(&query, 10, filter, 3), "threads do not change the result");
            found += hits.iter().filter(|(row, _)| expected.contains(row)).count();
            wanted += expected.len();
        }
    }
    assert!(found as f32 / wanted as f32 >= 0.97, "{found} of {wanted}");
}

#[test]
fn a_narrow_filter_makes_a_large_index_exact() {
    let vectors = clustered(EXACT_ROWS as usize + 500, 3);
    let (_dir, _, index) = index(&vectors);
    let few: RoaringBitmap = [7u32, 30_000, 33_000].into_iter().collect();
    let found: Vec<u32> = index.search(&vectors[30_000], 10, Some(&few), 1).iter().map(|(row, _)| *row).collect();
    assert_eq!((found[0], found.len()), (30_000, 3));
}

#[test]
fn damage_is_found_at_opening_or_reading() {
    let vectors = clustered(300, 5);
    let (_dir, path, index) = index(&vectors);
    let whole = std::fs::read(&path).unwrap();
    let right = index.search(&vectors[17], 10, None, 1);
    let (mut refused, mut noticed, mut padding) = (0, 0, 0);
    for at in (0..whole.len()).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        // Another file, so that the mapping of the first is not disturbed.
        let damaged = path.with_extension("damaged");
        std::fs::write(&damaged, bytes).unwrap();
        match DenseIndex::open(&damaged) {
            Err(_) => refused += 1,
            Ok(opened) => {
                let found = opened.search(&vectors[17], 10, None, 1);
                if opened.is_damaged() {
                    noticed += 1;
                } else {
                    assert_eq!(found, right, "only what no section covers may change unnoticed");
                    padding += 1;
                }
            }
        }
        std::fs::remove_file(&damaged).unwrap();
    }
    assert!(refused > 100 && noticed > 100 && padding < 20, "{refused} {noticed} {padding}");
    for length in (0..whole.len()).step_by(101) {
        let cut = path.with_extension("cut");
        std::fs::write(&cut, &whole[..length]).unwrap();
        assert!(DenseIndex::open(&cut).is_err(), "{length}");
        std::fs::remove_file(&cut).unwrap();
    }
}

#[test]
fn a_vector_of_another_length_is_not_built() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.index");
    assert!(DenseIndex::build(&path, 2, [&[1.0f32][..]].into_iter()).is_err());
    assert!(matches!(DenseIndex::open(&path), Err(Unusable::Missing)));
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing half-written stays");
}
