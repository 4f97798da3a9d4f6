use super::*;
use wire::{LibraryState, LibraryWork};

const DIMENSIONS: usize = 4;

fn embedder() -> EmbedderId {
    EmbedderId { name: "test".to_owned(), fingerprint: "f1".to_owned(), dimensions: DIMENSIONS }
}

/// The database itself.
fn tree(store: &Store) -> sled::Tree {
    store.tree().unwrap()
}

fn open(dir: &Path) -> Store {
    let store = Store::open(dir, &StoreOptions::default()).unwrap();
    store.bind_embedder(&embedder()).unwrap();
    store
}

/// Puts a document with one chunk per text.
fn put(store: &Store, collection: &str, id: &str, texts: &[&str]) -> Result<Put, StoreError> {
    let source = texts.join("\n");
    let document = Document {
        id: id.to_owned(),
        collection: collection.to_owned(),
        title: format!("Title of {id}"),
        media_type: "text/plain".to_owned(),
        hash: sha256_hex(source.as_bytes()),
        bytes: 0,
        chunks: 0,
        added_unix: 1,
        ..Document::default()
    };
    let chunks: Vec<Chunk> = texts.iter().zip(0..).map(|(text, ordinal)| chunk(id, ordinal, text)).collect();
    let vectors = vec![vec![0.5; DIMENSIONS]; chunks.len()];
    store.put(&document, source.as_bytes(), &chunks, &vectors)
}

fn chunk(id: &str, ordinal: u32, text: &str) -> Chunk {
    Chunk {
        document: id.to_owned(),
        ordinal,
        heading: vec!["Chapter".to_owned()],
        page: Some(3),
        text: text.to_owned(),
        breaks: Vec::new(),
        sections: Vec::new(),
        offset: 0,
        tokens: 2,
    }
}

/// The texts a search for `term` would find.
fn texts_with(store: &Store, collection: &str, term: &str) -> Vec<String> {
    let places = store
        .search(collection, |index| {
            index
                .postings(term)
                .filter_map(|posting| {
                    let place = index.place(posting.row);
                    index.document(place.slot).map(|document| (document.number, place.ordinal))
                })
                .collect::<Vec<_>>()
        })
        .unwrap()
        .unwrap_or_default();
    places.into_iter().map(|(number, ordinal)| store.chunk(number, ordinal).unwrap().unwrap().text).collect()
}

/// Files below `sources`, without the folders.
fn files(dir: &Path) -> Vec<String> {
    let folders = std::fs::read_dir(dir.join("sources")).unwrap();
    let mut names: Vec<String> = folders
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_document_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        assert_eq!(put(&store, "manuals", "a.md", &["pump hums", "valve leaks"]).unwrap(), Put::Added);
    }
    let store = open(dir.path());
    let document = store.document("manuals", "a.md").unwrap().unwrap();
    assert_eq!((document.chunks, document.bytes), (2, 21));
    assert_eq!(store.source(&document.hash).unwrap(), b"pump hums\nvalve leaks");
    assert_eq!(store.collections().unwrap(), [Collection { name: "manuals".to_owned(), documents: 1, chunks: 2 }]);
    assert_eq!(texts_with(&store, "manuals", "valv"), ["valve leaks"]);
    assert_eq!(store.search("manuals", |index| (index.rows(), index.dimensions())).unwrap(), Some((2, DIMENSIONS)));
}

#[test]
fn replacing_and_deleting_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let empty = tree(&store).len();
    for warm in [false, true] {
        if warm {
            // The change has to reach the index in memory, too.
            store.search("c", |_| ()).unwrap();
        }
        put(&store, "c", "a", &["pump one", "pump two", "pump three"]).unwrap();
        put(&store, "c", "b", &["other pump"]).unwrap();
        let before = store.version("c").unwrap();
        assert_eq!(put(&store, "c", "a", &["valve"]).unwrap(), Put::Replaced);
        assert!(store.version("c").unwrap() > before);
        assert_eq!(texts_with(&store, "c", "pump"), ["other pump"]);
        assert_eq!(store.search("c", |index| index.document_frequency("pump")).unwrap(), Some(1));
        assert_eq!(store.collections().unwrap()[0].chunks, 2);
        assert_eq!(files(dir.path()).len(), 4, "two sources and two records: {:?}", files(dir.path()));
        assert!(store.delete("c", "a").unwrap());
        assert!(!store.delete("c", "a").unwrap());
        assert!(store.delete("c", "b").unwrap());
        assert_eq!(tree(&store).len(), empty + 2, "the collection and the sequence");
        assert!(files(dir.path()).is_empty());
    }
    assert_eq!(store.search("c", |index| index.live().len()).unwrap(), Some(0));
    assert_eq!(store.collections().unwrap()[0].documents, 0);
}

#[test]
fn statement_vectors_die_with_their_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let put_with = |texts: &[&str], vectors: Vec<Vec<f32>>| {
        let source = texts.join("\n");
        let (id, collection) = ("a".to_owned(), "c".to_owned());
        let document = Document { id, collection, hash: sha256_hex(source.as_bytes()), ..Document::default() };
        let chunks: Vec<Chunk> = texts.iter().zip(0..).map(|(text, ordinal)| chunk("a", ordinal, text)).collect();
        let statements = vec![StatementVectors { version: 1, vectors }; texts.len()];
        let mut incoming = store.begin_put(&document, source.as_bytes()).unwrap();
        incoming.append_with_statements(&chunks, &vec![vec![0.5; DIMENSIONS]; texts.len()], &statements)?;
        incoming.commit()
    };
    let kept = || tree(&store).scan_prefix("s").count();
    let number = || store.get::<DocumentRecord>(&keys::document("c", "a")).unwrap().unwrap().number;
    let texts: Vec<String> = (0..300).map(|n| format!("word{n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    put_with(&texts, vec![vec![0.5; DIMENSIONS]; 2]).unwrap();
    assert_eq!(kept(), 300);
    let first = store.statements(number(), 299).unwrap().unwrap();
    assert_eq!((first.version, first.vectors), (1, vec![vec![0.5; DIMENSIONS]; 2]));
    // The store refuses it, and the first version stays.
    assert!(put_with(&["new"], vec![vec![0.5; DIMENSIONS + 1]]).is_err());
    assert_eq!(kept(), 300);
    put_with(&["new"], vec![vec![0.5; DIMENSIONS]]).unwrap();
    assert_eq!(kept(), 1);
    // Documents of older versions have no statements.
    put_with(&["newer"], Vec::new()).unwrap();
    assert_eq!((kept(), store.statements(number(), 0).unwrap()), (0, None));
    put_with(&["newest"], vec![vec![0.5; DIMENSIONS]]).unwrap();
    tree(&store).insert(keys::statements(number(), 0), vec![1, 0]).unwrap();
    assert_eq!(store.statements(number(), 0).unwrap(), None, "damaged");
    store.delete("c", "a").unwrap();
    assert_eq!(kept(), 0);
}

#[test]
fn documents_with_the_same_source_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["same"]).unwrap();
    put(&store, "d", "a", &["same"]).unwrap();
    let hash = store.document("c", "a").unwrap().unwrap().hash;
    store.delete("c", "a").unwrap();
    assert_eq!(store.source(&hash).unwrap(), b"same");
    store.delete("d", "a").unwrap();
    assert!(matches!(store.source(&hash), Err(StoreError::NoSource { .. })));
    assert!(matches!(store.source("../../etc/passwd"), Err(StoreError::NoSource { .. })));
}

#[test]
fn a_source_survives_the_deletion_of_its_other_document() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["same"]).unwrap();
    let hash = store.document("c", "a").unwrap().unwrap().hash;
    let document = Document { id: "b".to_owned(), collection: "c".to_owned(), hash: hash.clone(), ..Document::default() };
    let mut incoming = store.begin_put(&document, b"same").unwrap();
    incoming.append(&[chunk("b", 0, "same")], &[vec![0.5; DIMENSIONS]]).unwrap();
    assert!(store.delete("c", "a").unwrap());
    assert_eq!(incoming.commit().unwrap(), Put::Added);
    assert_eq!(store.source(&hash).unwrap(), b"same");
    assert_eq!(files(dir.path()).len(), 2, "one source and one record: {:?}", files(dir.path()));
}

#[test]
fn putting_the_same_source_again_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["same"]).unwrap();
    assert_eq!(put(&store, "c", "a", &["same"]).unwrap(), Put::Replaced);
    assert_eq!(files(dir.path()).len(), 2);
    assert_eq!(store.kept().unwrap().len(), 1);
}

#[test]
fn a_second_opener_is_told_who_holds_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path(), &StoreOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    drop(store);
    open(dir.path());
}

#[test]
fn another_encoder_is_refused_until_rebound() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["pump"]).unwrap();
    let other = EmbedderId { fingerprint: "f2".to_owned(), dimensions: 2, ..embedder() };
    let error = store.bind_embedder(&other).unwrap_err();
    assert!(error.to_string().contains("vademecum ingest --re-embed"), "{error}");
    store.rebind_embedder(&other).unwrap();
    assert_eq!(store.embedder().unwrap(), Some(other));
    assert!(store.documents(None).unwrap().is_empty());
    let kept = store.kept().unwrap();
    assert_eq!((kept.len(), store.source(&kept[0].hash).unwrap().as_slice()), (1, b"pump".as_slice()));
}

/// Files of sources, finished or not.
fn sources(dir: &Path) -> usize {
    let folders = std::fs::read_dir(dir.join("sources")).unwrap().map(|folder| folder.unwrap().path());
    let names = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|file| file.unwrap().file_name());
    names.filter(|name| !name.to_string_lossy().ends_with(".json")).count()
}

#[test]
fn a_long_document_is_seen_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let unfinished = |store: &Store| tree(store).scan_prefix(keys::UNFINISHED).count();
    let written = |store: &Store| tree(store).scan_prefix("k").count() + tree(store).scan_prefix("r").count();
    let texts: Vec<String> = (0..1000).map(|n| format!("word{n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    {
        let store = open(dir.path());
        put(&store, "c", "a", &["pump"]).unwrap();
        let begun = |count: u32| {
            let document = Document { id: "a".into(), collection: "c".into(), hash: sha256_hex(b"new"), ..Document::default() };
            let mut incoming = store.begin_put(&document, b"new").unwrap();
            let chunks: Vec<Chunk> = (0..count).map(|n| chunk("a", n, "text")).collect();
            incoming.append(&chunks, &vec![vec![0.5; DIMENSIONS]; count as usize]).unwrap();
            incoming
        };
        // Dropped before anything is written, and after.
        for count in [10, 600] {
            let incoming = begun(count);
            assert_eq!(store.document("c", "a").unwrap().unwrap().chunks, 1);
            drop(incoming);
            assert_eq!((unfinished(&store), written(&store), sources(dir.path())), (0, 2, 1));
        }
        // Interrupted: the written chunks stay until the next start.
        std::mem::forget(begun(600));
        assert_eq!((unfinished(&store), written(&store), sources(dir.path())), (1, 2 + 2 * 512, 2));
        store.flush().unwrap();
    }
    let store = open(dir.path());
    assert_eq!((unfinished(&store), written(&store), sources(dir.path())), (0, 2, 1));
    assert_eq!(put(&store, "c", "a", &texts).unwrap(), Put::Replaced);
    assert_eq!((unfinished(&store), written(&store)), (0, 2000));
    assert_eq!(store.document("c", "a").unwrap().unwrap().chunks, 1000);
    assert_eq!(put(&store, "c", "a", &["short"]).unwrap(), Put::Replaced);
    assert_eq!(written(&store), 2);
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        let newer = store.encode(&(SCHEMA + 1)).unwrap();
        tree(&store).insert(keys::SCHEMA, newer).unwrap();
    }
    let error = Store::open(dir.path(), &StoreOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::SchemaTooNew { found: 2, .. }), "{error}");
}

#[test]
fn an_upgrade_runs_its_steps_after_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["pump"]).unwrap();
    let steps: [Upgrade; 2] = [|_| panic!("schema 1 is left behind already"), |store| store.keep_note("c", "step", &2_u8)];
    store.upgrade(3, &steps).unwrap();
    assert!(!dir.path().join("before-schema-3.tar.gz").exists());
    store.upgrade(2, &steps).unwrap();
    assert_eq!((store.get::<u32>(keys::SCHEMA).unwrap(), store.note::<u8>("c", "step").unwrap()), (Some(3), Some(2)));
    let kept = backup::verify(&dir.path().join("before-schema-3.tar.gz")).unwrap();
    assert_eq!((kept.documents, kept.bytes > 4), (1, true));
    drop(store);
    // An older version refuses the newer schema, and goes on from the backup.
    assert!(matches!(Store::open(dir.path(), &StoreOptions::default()).unwrap_err(), StoreError::SchemaTooNew { found: 3, .. }));
    let backup = dir.path().join("before-schema-3.tar.gz");
    assert!(backup::restore(&backup, dir.path(), false).is_err());
    backup::restore(&backup, dir.path(), true).unwrap();
    assert_eq!(open(dir.path()).next_missing().unwrap().1, b"pump");
}

#[test]
fn a_damaged_database_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let before = {
        let store = open(dir.path());
        put(&store, "c", "a", &["pump"]).unwrap();
        put(&store, "d", "b", &["valve"]).unwrap();
        put(&store, "c", "gone", &["gasket"]).unwrap();
        store.keep_note("c", "fit", &7_u32).unwrap();
        store.delete("c", "gone").unwrap();
        store.version("c").unwrap()
    };
    std::fs::write(dir.path().join("db/conf"), b"garbage that is no configuration").unwrap();
    let store = open(dir.path());
    let told = store.recovery();
    assert_eq!((told.set_aside.len(), told.missing, told.rebuilt), (1, 2, 0), "{told:?}");
    assert_eq!(told.kept_aside, [told.set_aside[0].path.clone()]);
    assert!(told.kept_aside[0].join("db").exists());
    // Questions find nothing yet, which is no error. The notes of other rooms are still there.
    assert_eq!(store.search("c", |index| index.live().len()).unwrap(), Some(0));
    assert_eq!(store.note::<u32>("c", "fit").unwrap(), Some(7));
    let (first, bytes) = store.next_missing().unwrap();
    assert_eq!((first.id.as_str(), bytes.as_slice()), ("a", b"pump".as_slice()));
    put(&store, "c", "a", &["pump"]).unwrap();
    assert!(store.version("c").unwrap() > before, "no number is given twice");
    assert!(store.delete("d", "b").unwrap(), "missing, but the owner's to delete");
    assert_eq!(store.next_missing(), None);
    let told = store.recovery();
    assert_eq!((told.missing, told.rebuilt, told.failed.len()), (0, 1, 0));
    drop(store);
    let store = open(dir.path());
    assert_eq!((store.recovery().missing, store.documents(None).unwrap().len()), (0, 1));
    assert_eq!(files(dir.path()).len(), 2);
}

/// Work, documents that can be searched, documents in all.
fn state(store: &Store, collection: Option<&str>) -> (LibraryWork, u64, u64) {
    let LibraryState { state, have, of } = store.library_state(collection).unwrap();
    (state, have, of)
}

#[test]
fn a_rebuild_tells_its_progress_and_follows_the_questions() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        for (collection, id, text) in [("c", "a", "pump"), ("c", "b", "valve"), ("d", "e", "gasket")] {
            put(&store, collection, id, &[text]).unwrap();
        }
        assert_eq!(state(&store, Some("c")), (LibraryWork::Whole, 2, 2));
    }
    std::fs::write(dir.path().join("db/conf"), b"garbage that is no configuration").unwrap();
    let store = open(dir.path());
    assert_eq!(state(&store, Some("c")), (LibraryWork::Rebuilding, 0, 2));
    assert_eq!(state(&store, None), (LibraryWork::Rebuilding, 0, 3));
    let next = || store.next_missing().unwrap().0.id;
    assert_eq!(next(), "a", "the oldest");
    let mut waiting = store.wholeness().waiting("c");
    assert!(waiting.comes());
    waiting.ask("Where is the valve?");
    assert_eq!(next(), "b", "its source has the word");
    put(&store, "c", "b", &["valve"]).unwrap();
    assert_eq!(state(&store, Some("c")), (LibraryWork::Rebuilding, 1, 2));
    assert!(waiting.comes());
    store.give_up(&Document { id: "a".to_owned(), collection: "c".to_owned(), ..Document::default() }, "a test");
    assert_eq!(state(&store, Some("c")), (LibraryWork::Whole, 1, 1));
    assert!(!waiting.comes(), "the other collection is none of its business");
    assert_eq!(state(&store, None), (LibraryWork::Rebuilding, 1, 2));
    store.delete("d", "e").unwrap();
    assert_eq!(state(&store, None), (LibraryWork::Whole, 1, 1));
}

#[test]
fn an_interrupted_change_of_the_encoder_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let other = EmbedderId { fingerprint: "f2".to_owned(), ..embedder() };
    let reopened = || {
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        store.bind_embedder(&other).unwrap();
        store
    };
    {
        let store = open(dir.path());
        put(&store, "c", "a", &["pump"]).unwrap();
        store.rebind_embedder(&other).unwrap();
    }
    let store = reopened();
    assert_eq!(state(&store, Some("c")), (LibraryWork::Embedding, 0, 1));
    put(&store, "c", "a", &["pump"]).unwrap();
    assert_eq!(state(&store, Some("c")), (LibraryWork::Whole, 1, 1));
    drop(store);
    assert!(reopened().value(keys::REBOUND).unwrap().is_none(), "it is over");
}

#[test]
fn rebuilding_undoes_no_later_change() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        put(&store, "c", "a", &["old"]).unwrap();
        put(&store, "c", "b", &["old too"]).unwrap();
    }
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    let store = open(dir.path());
    assert_eq!(store.recovery().missing, 2);
    let rebuilding = |id: &str| {
        let (document, bytes) = store.next_missing().unwrap();
        assert_eq!(document.id, id);
        let mut incoming = store.begin_put(&document, &bytes).unwrap().rebuilt();
        incoming.append(&[chunk(id, 0, "old")], &[vec![0.5; DIMENSIONS]]).unwrap();
        incoming
    };
    let incoming = rebuilding("a");
    put(&store, "c", "a", &["new"]).unwrap();
    assert!(matches!(incoming.commit(), Err(StoreError::Refused { .. })));
    assert_eq!(texts_with(&store, "c", "new"), ["new"]);
    let incoming = rebuilding("b");
    assert!(store.delete("c", "b").unwrap());
    assert!(matches!(incoming.commit(), Err(StoreError::Refused { .. })));
    drop(store);
    let store = open(dir.path());
    assert_eq!((store.recovery().missing, store.documents(None).unwrap().len(), files(dir.path()).len()), (0, 1, 2));
}

#[test]
fn uncommitted_versions_stay_deleted() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        put(&store, "c", "a", &["first"]).unwrap();
        // A replace that died after the files and before the batch.
        let mut record = store.records(keys::DOCUMENTS).unwrap().remove(0);
        (record.number, record.document.hash) = (record.number + 1, sha256_hex(b"second"));
        let staged = store.inner.sources.stage(&record.document.hash, b"second").unwrap();
        store.inner.sources.keep(&record, staged).unwrap();
    }
    let store = open(dir.path());
    assert_eq!(store.next_missing().unwrap().1, b"second");
    put(&store, "c", "a", &["third"]).unwrap();
    assert_eq!((store.next_missing(), files(dir.path()).len()), (None, 2));
    assert!(store.delete("c", "a").unwrap());
    drop(store);
    assert_eq!((open(dir.path()).next_missing(), files(dir.path()).len()), (None, 0));
}

#[test]
fn a_damaged_source_is_not_rebuilt_but_told() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        put(&store, "c", "a", &["pump"]).unwrap();
        put(&store, "c", "b", &["valve"]).unwrap();
    }
    let source = dir.path().join("sources").join(&sha256_hex(b"pump")[..2]).join(sha256_hex(b"pump"));
    std::fs::write(source, b"bump").unwrap();
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    let store = open(dir.path());
    assert_eq!(store.next_missing().unwrap().0.id, "b");
    let told = store.recovery();
    assert_eq!((told.missing, told.failed.len(), told.failed[0].0.as_str()), (1, 1, "a"));
}

#[test]
fn three_damaged_databases_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let mut all = Vec::new();
    for _ in 0..5 {
        std::fs::write(dir.path().join("db/conf"), b"garbage that is no configuration").unwrap();
        let told = open(dir.path()).recovery();
        all.push(told.set_aside[0].path.clone());
        assert!(told.kept_aside.len() <= 3);
    }
    assert_eq!(open(dir.path()).recovery().kept_aside, all[2..]);
}

#[test]
fn only_an_end_in_order_leaves_the_marker() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("closed");
    let store = open(dir.path());
    assert!(!marker.exists());
    drop(store);
    assert!(marker.exists());
    let store = open(dir.path());
    assert!(!marker.exists());
    // A clone that lives on changes nothing, such as a thread's at the end of the daemon.
    let clone = store.clone();
    store.close().unwrap();
    assert!(marker.exists());
    assert!(put(&clone, "c", "a", &["late"]).is_err());
    drop((store, clone));
    open(dir.path());
}

#[test]
fn making_the_index_finds_and_repairs_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["pump", "valve"]).unwrap();
    let number = store.records(keys::DOCUMENTS).unwrap()[0].number;
    for row in tree(&store).scan_prefix(keys::rows_of(number)).keys().take(1) {
        tree(&store).remove(row.unwrap()).unwrap();
    }
    assert!(matches!(store.search("c", |_| ()), Err(StoreError::Damaged { .. })));
    assert!(store.recovery().refusing.is_some());
    store.wait_for_repair();
    assert_eq!(store.next_missing().unwrap().0.id, "a");
}

#[test]
fn the_next_change_mends_late_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["pump"]).unwrap();
    let number = store.records(keys::DOCUMENTS).unwrap()[0].number;
    tree(&store).insert(keys::chunk(number, 0), b"no record").unwrap();
    assert!(matches!(store.chunk(number, 0), Err(StoreError::Damaged { .. })));
    assert!(store.recovery().refusing.is_some());
    put(&store, "c", "b", &["valve"]).unwrap();
    let told = store.recovery();
    assert_eq!((told.refusing, told.set_aside.len(), told.missing), (None, 1, 1));
    assert_eq!(store.next_missing().unwrap().0.id, "a");
    assert_eq!(texts_with(&store, "c", "valv"), ["valve"]);
}

#[test]
fn names_are_bounded_and_cannot_collide() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for name in ["", "A", "-a", "_a", "a/b", "a\0", "ä", &"a".repeat(65)] {
        assert!(matches!(put(&store, name, "a", &["x"]), Err(StoreError::CollectionName(_))), "{name:?}");
    }
    for id in ["", "a\0b", "a\nb", "a\u{85}b", &"a".repeat(513)] {
        assert!(matches!(put(&store, "c", id, &["x"]), Err(StoreError::DocumentId(_))), "{id:?}");
    }
    // Ids that look like keys of another kind or like parts of another collection's key.
    let ids = ["mschema", "../../x", "#0", "a#1", "ü 漢 \u{200b}", "b", &"z".repeat(512)];
    for collection in ["a", "ab", "a-b"] {
        for id in ids {
            put(&store, collection, id, &["x"]).unwrap();
        }
    }
    assert_eq!(store.documents(Some("a")).unwrap().len(), ids.len());
    assert_eq!(store.documents(None).unwrap().len(), 3 * ids.len());
    for id in ids {
        assert!(store.delete("a", id).unwrap());
    }
    assert_eq!(store.documents(Some("ab")).unwrap().len(), ids.len());
    assert_eq!(store.document("ab", "a#1").unwrap().unwrap().id, "a#1");
}

type Parts<'a> = (&'a [u8], Vec<Chunk>, Vec<Vec<f32>>);

#[test]
fn misfits_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "c", "a", &["pump"]).unwrap();
    let document = store.document("c", "a").unwrap().unwrap();
    let good = vec![0.5; DIMENSIONS];
    let cases: [Parts; 5] = [
        (b"pump", vec![chunk("a", 0, "x")], vec![]),
        (b"pump", vec![chunk("a", 1, "x")], vec![good.clone()]),
        (b"pump", vec![chunk("b", 0, "x")], vec![good.clone()]),
        (b"pump", vec![chunk("a", 0, "x")], vec![vec![f32::NAN; DIMENSIONS]]),
        (b"other", vec![chunk("a", 0, "x")], vec![good]),
    ];
    for (source, chunks, vectors) in cases {
        assert!(matches!(store.put(&document, source, &chunks, &vectors), Err(StoreError::Refused { .. })));
    }
    assert_eq!(texts_with(&store, "c", "pump"), ["pump"]);
}

#[test]
fn leftovers_of_a_crash_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let hash = {
        let store = open(dir.path());
        put(&store, "c", "a", &["old"]).unwrap();
        put(&store, "c", "b", &["stays"]).unwrap();
        // A replace that died after the files and before the batch, and one that died after the batch.
        let old = store.records(keys::DOCUMENTS).unwrap().remove(0);
        put(&store, "c", "a", &["new"]).unwrap();
        let staged = store.inner.sources.stage(&old.document.hash, b"old").unwrap();
        store.inner.sources.keep(&old, staged).unwrap();
        old.document.hash
    };
    let orphan = dir.path().join("sources").join(&hash[..2]).join(format!("{}.unfinished", "0".repeat(64)));
    std::fs::write(&orphan, b"half").unwrap();
    assert_eq!(files(dir.path()).len(), 7);
    let store = open(dir.path());
    assert_eq!(files(dir.path()).len(), 4);
    assert_eq!(store.document("c", "a").unwrap().unwrap().bytes, 3);
    drop(store);
    // The database is lost: the files know everything.
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    let store = open(dir.path());
    let kept: Vec<String> = store.kept().unwrap().into_iter().map(|document| document.id).collect();
    assert_eq!((kept, files(dir.path()).len()), (vec!["b".to_owned(), "a".to_owned()], 4));
}

/// Run by [`a_kill_loses_nothing_acknowledged`] in a process of its own: replaces documents until killed.
#[test]
#[ignore = "the body of another test"]
fn put_until_killed() {
    let Some(dir) = std::env::var_os("VADEMECUM_TEST_STORE") else { return };
    let store = open(Path::new(&dir));
    for round in 0.. {
        let texts: Vec<String> = (0..40).map(|part| format!("round{round} part{part} {}", "filler ".repeat(40))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        put(&store, "c", &format!("d{}", round % 5), &texts[..20 + round % 20]).unwrap();
        println!("acknowledged {round}");
    }
}

#[test]
fn a_kill_loses_nothing_acknowledged() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    for wait in [3, 8, 13] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::put_until_killed", "--ignored", "--nocapture"])
            .env("VADEMECUM_TEST_STORE", dir.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let acknowledged = |line: &String| line.strip_prefix("acknowledged ").and_then(|n| n.parse::<usize>().ok());
        let mut last = lines.by_ref().filter_map(|line| acknowledged(&line)).nth(wait).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        last = lines.filter_map(|line| acknowledged(&line)).last().unwrap_or(last);

        let store = open(dir.path());
        let mut newest = 0;
        for document in store.documents(None).unwrap() {
            let source = String::from_utf8(store.source(&document.hash).unwrap()).unwrap();
            let lines: Vec<&str> = source.lines().collect();
            let round: usize = lines[0].split_once(' ').unwrap().0.strip_prefix("round").unwrap().parse().unwrap();
            assert_eq!((lines.len(), document.chunks as usize), (20 + round % 20, lines.len()));
            assert_eq!(texts_with(&store, "c", &format!("round{round}")), lines, "{}", document.id);
            newest = newest.max(round);
        }
        assert!(newest == last || newest == last + 1, "{newest} after {last} was acknowledged");
    }
}

/// Texts of `count` documents with 100 chunks each: enough for an index file.
fn put_many(store: &Store, documents: std::ops::Range<usize>) {
    for number in documents {
        let texts: Vec<String> = (0..100).map(|part| format!("pump{number} part{part}")).collect();
        put(store, "c", &format!("d{number}"), &texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    }
}

fn index_file(dir: &Path) -> PathBuf {
    dir.join("index").join("c.index")
}

/// The findings of searches; the same whatever became of the index file.
fn findings(store: &Store) -> (Vec<String>, Vec<String>, u64, Vec<f32>) {
    let nearest = |index: &Index| {
        let query = dense::Query::new(&[0.5; DIMENSIONS]);
        index.nearest(&query, 5, index.live()).into_iter().map(|(_, cosine)| cosine).collect::<Vec<f32>>()
    };
    let live = store.search("c", |index| index.live().len()).unwrap().unwrap();
    (texts_with(store, "c", "part7"), texts_with(store, "c", "pump3"), live, store.search("c", nearest).unwrap().unwrap())
}

#[test]
fn flush_writes_the_index_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let before = {
        let store = open(dir.path());
        store.create_collection("c").unwrap();
        store.search("c", |_| ()).unwrap();
        put_many(&store, 0..12);
        assert!(!index_file(dir.path()).exists());
        store.flush().unwrap();
        findings(&store)
    };
    assert!(index_file(dir.path()).exists());
    let written = std::fs::metadata(index_file(dir.path())).unwrap().modified().unwrap();
    let store = open(dir.path());
    assert_eq!(findings(&store), before);
    // A few changes live in memory and are found again without the file.
    put(&store, "c", "d3", &["valve part7"]).unwrap();
    store.delete("c", "d4").unwrap();
    let changed = findings(&store);
    assert_eq!((changed.0.len(), changed.1.len(), changed.2), (11, 0, 1001));
    store.flush().unwrap();
    drop(store);
    assert_eq!(findings(&open(dir.path())), changed, "a stale file and what came after it");
    assert_eq!(std::fs::metadata(index_file(dir.path())).unwrap().modified().unwrap(), written);
}

#[test]
fn terms_of_an_older_version_are_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        put(&store, "c", "a", &["use --force", "pump"]).unwrap();
        // The state after a put by a version that knew nothing of signs: its record, its rows, and an index file of its terms.
        let key = keys::document("c", "a");
        let mut record: DocumentRecord = store.get(&key).unwrap().unwrap();
        record.terms = 0;
        let mut batch = Batch::default();
        batch.insert(key, store.encode(&record).unwrap());
        for (ordinal, text) in [(0, "use force"), (1, "pump")] {
            let row = row::encode(&[0.5; DIMENSIONS], "Title of a\nChapter", text, Language::English);
            batch.insert(keys::row(record.number, ordinal), row);
        }
        store.commit(batch).unwrap();
        std::fs::create_dir_all(dir.path().join("index")).unwrap();
        let mut index = Index::new(DIMENSIONS, 1);
        record.terms = terms::VERSION;
        store.read_rows(&record, &mut index).unwrap();
        let origin = Origin { terms: 1, ..store.origin("c").unwrap().unwrap() };
        index.write(&index_file(dir.path()), &origin).unwrap();
    }
    let store = open(dir.path());
    assert_eq!(texts_with(&store, "c", "--force"), ["use --force"]);
    assert_eq!((texts_with(&store, "c", "forc").len(), texts_with(&store, "c", "chapter").len()), (1, 2));
    let query = dense::Query::new(&[0.5; DIMENSIONS]);
    let cosines = store.search("c", |index| index.nearest(&query, 2, index.live())).unwrap().unwrap();
    assert!(cosines.iter().all(|(_, cosine)| (cosine - 1.0).abs() < 0.02), "vectors stay: {cosines:?}");
    // A new put has the terms of this version.
    assert_eq!(put(&store, "c", "b", &["-z"]).unwrap(), Put::Added);
    assert_eq!(texts_with(&store, "c", "-z"), ["-z"]);
    assert_eq!(texts_with(&store, "c", "--force"), ["use --force"]);
}

#[test]
fn many_rows_leave_memory_while_they_are_put() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.create_collection("c").unwrap();
    store.search("c", |_| ()).unwrap();
    put_many(&store, 0..90);
    assert!(index_file(dir.path()).exists(), "9,000 rows are worth a file");
    assert_eq!((texts_with(&store, "c", "part7").len(), findings(&store).2), (90, 9000));
}

#[test]
fn damage_to_the_index_file_costs_only_it() {
    let dir = tempfile::tempdir().unwrap();
    let right = {
        let store = open(dir.path());
        put_many(&store, 0..12);
        findings(&store)
    };
    let path = index_file(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let cut = |length: usize| whole[..length].to_vec();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut cases = vec![cut(0), cut(10), cut(whole.len() / 2), cut(whole.len() - 1), vec![7; 5000]];
    cases.extend((0..whole.len()).step_by(whole.len() / 12).map(flipped));
    for (case, bytes) in cases.into_iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(findings(&open(dir.path())), right, "{case}");
        // The file has been made again, except for the padding, which no section covers.
        let now = std::fs::read(&path).unwrap();
        assert_eq!(now.len(), whole.len(), "{case}");
    }
}

#[test]
fn a_file_of_another_database_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        put_many(&store, 0..12);
        findings(&store);
    }
    // The owner moves a damaged database away and ingests again: numbers and versions repeat.
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    let store = open(dir.path());
    for number in 0..12 {
        let texts: Vec<String> = (0..100).map(|part| format!("other{number} part{part}")).collect();
        put(&store, "c", &format!("d{number}"), &texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    }
    assert!(texts_with(&store, "c", "pump3").is_empty());
    assert_eq!(texts_with(&store, "c", "other3").len(), 100);
}

#[test]
fn searches_go_on_without_an_index_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("index"), b"in the way").unwrap();
    let store = open(dir.path());
    put_many(&store, 0..12);
    assert_eq!(findings(&store).2, 1200);
    put_many(&store, 12..14);
    store.flush().unwrap();
    assert_eq!(findings(&store).2, 1400);
}
