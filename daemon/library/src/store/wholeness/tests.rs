use super::*;

fn lost(whole: &Wholeness, ids: &[&str]) {
    whole.has_lost(ids.iter().map(|id| ("c", *id, false)), LibraryWork::Rebuilding);
}

/// Work, absent and outdated documents of the collection `c`.
fn told(whole: &Wholeness) -> Option<(LibraryWork, usize, usize)> {
    whole.lacking(Some("c")).map(|lacking| (lacking.work, lacking.absent, lacking.outdated))
}

/// Whether [`Waiting::changed`] is over already.
async fn has_changed(waiting: &mut Waiting) -> bool {
    tokio::select! {
        biased;
        () = waiting.changed() => true,
        () = std::future::ready(()) => false,
    }
}

#[test]
fn each_reporter_counts_until_it_is_done() {
    let whole = Wholeness::default();
    assert_eq!(told(&whole), None);
    lost(&whole, &["a", "b"]);
    assert_eq!(told(&whole), Some((LibraryWork::Rebuilding, 2, 0)));
    let root = Path::new("/srv");
    whole.has_folder("c", root);
    // The same document as a lost one, an older version of which is there.
    whole.has_file("c", "b", Path::new("/srv/b"), true, false);
    whole.has_file("d", "e", Path::new("/srv/e"), false, false);
    assert_eq!(told(&whole), Some((LibraryWork::Rebuilding, 2, 1)));
    whole.is_settled("c", "a");
    whole.is_settled("c", "b");
    assert_eq!(told(&whole), Some((LibraryWork::Ingesting, 1, 1)));
    whole.has_seen_folder("c", root);
    let put = whole.puts("c", "f", false, None);
    assert_eq!(told(&whole), Some((LibraryWork::Ingesting, 1, 1)));
    drop(put);
    whole.has_read("c", "b", Path::new("/srv/b"));
    assert_eq!(told(&whole), None);
    assert_eq!(whole.lacking(None).map(|all| all.absent), Some(1), "the other collection's");
    whole.forget_files();
    assert_eq!(whole.lacking(None), None);
}

#[test]
fn a_database_that_is_being_opened_may_lack_anything() {
    let whole = Wholeness::default();
    whole.opens();
    assert_eq!(told(&whole), Some((LibraryWork::Rebuilding, 1, 0)));
    let mut waiting = whole.waiting("c");
    assert!(waiting.comes());
    lost(&whole, &["a"]);
    assert!(waiting.comes(), "a question that came meanwhile waits for the lost documents");
    whole.is_settled("c", "a");
    assert!(!waiting.comes());
    whole.opens();
    lost(&whole, &[]);
    assert_eq!(told(&whole), None);
}

#[tokio::test]
async fn a_question_waits_for_the_documents_of_its_time() {
    let whole = Wholeness::default();
    lost(&whole, &["a", "b"]);
    let mut waiting = whole.waiting("c");
    assert!(waiting.comes() && !whole.waiting("d").comes());
    let _later = whole.puts("c", "later", false, None);
    whole.has_file("d", "elsewhere", Path::new("/srv/elsewhere"), false, false);
    assert!(!has_changed(&mut waiting).await, "nothing of its own has come");
    whole.is_settled("c", "a");
    assert!(has_changed(&mut waiting).await);
    assert!(waiting.comes() && !has_changed(&mut waiting).await);
    whole.is_settled("c", "b");
    assert!(has_changed(&mut waiting).await && !waiting.comes(), "later documents are not waited for");
    assert_eq!(told(&whole), Some((LibraryWork::Ingesting, 1, 0)), "but they are told of");
}

#[tokio::test]
async fn a_waiting_question_is_woken() {
    let whole = Wholeness::default();
    lost(&whole, &["a"]);
    let mut waiting = whole.waiting("c");
    assert!(waiting.comes());
    let woken = tokio::spawn(async move {
        waiting.changed().await;
        waiting.comes()
    });
    tokio::task::yield_now().await;
    whole.is_settled("c", "a");
    assert!(!woken.await.unwrap());
}

#[test]
fn a_document_that_the_disk_refuses_is_not_waited_for() {
    let whole = Wholeness::default();
    lost(&whole, &["a"]);
    let path = Path::new("/srv/b");
    whole.has_file("c", "b", path, false, false);
    let mut waiting = whole.waiting("c");
    whole.stalls(true);
    assert!(waiting.comes(), "the file still comes");
    whole.has_file("c", "b", path, false, true);
    assert!(!waiting.comes());
    whole.has_file("c", "b", path, false, false);
    assert!(waiting.comes());
    whole.is_away(Path::new("/srv"), true);
    assert!(!waiting.comes());
    assert_eq!(told(&whole), Some((LibraryWork::Rebuilding, 2, 0)), "it is told of all the same");
    whole.is_away(Path::new("/srv"), false);
    whole.stalls(false);
    assert!(waiting.comes());
}

#[test]
fn announced_documents_are_lacking_until_their_sender_is_silent() {
    let mut lacks = Lacks::default();
    let begun = Instant::now();
    let left = |lacks: &Lacks, now| lacks.left("c", 1, now).0;
    let first = lacks.begin("c", "1", false, Some(2), begun);
    assert_eq!((left(&lacks, begun), lacks.left("c", 1, begun).1), (3, None));
    lacks.end(&first, true, begun);
    assert_eq!(lacks.left("c", 1, begun), (2, Some(begun + LAPSE)));
    // The second document was announced before the question came, so the question waits for it.
    let soon = begun + LAPSE / 2;
    let second = lacks.begin("c", "2", false, Some(1), soon);
    assert_eq!((left(&lacks, soon), left(&lacks, soon + 10 * LAPSE)), (2, 2), "it may take its time");
    // Somebody else's document is none of the announced ones.
    let other = lacks.begin("c", "other", true, None, soon);
    lacks.end(&other, false, soon);
    lacks.end(&second, true, soon);
    assert_eq!(lacks.count(Some("c"), soon).map(|of| of.absent), Some(1));
    assert_eq!((left(&lacks, soon), left(&lacks, soon + LAPSE)), (1, 0), "its sender is gone");
    assert_eq!(lacks.count(Some("c"), soon + LAPSE), None);
    // The next series begins anew, and its last document ends it.
    let third = lacks.begin("c", "3", false, Some(0), soon + LAPSE);
    assert_eq!(left(&lacks, soon + LAPSE), 0, "it came later than the question");
    lacks.end(&third, true, soon + LAPSE);
    assert!(lacks.announced.is_empty());
}

#[test]
fn a_question_leaves_its_words_while_it_waits() {
    let whole = Wholeness::default();
    let unread = |collection, id| Unread { collection, id, title: "" };
    let candidates = [unread("c", "cellar.md"), unread("c", "pump.md"), unread("d", "pump.md")];
    let likeliest = || whole.likeliest(&candidates, |_| String::new());
    assert!(!whole.is_asked());
    assert_eq!(likeliest(), 0);
    let (mut first, mut second) = (whole.waiting("c"), whole.waiting("d"));
    first.ask("Where is the cellar?");
    second.ask("How do I start the pump?");
    assert!(whole.is_asked());
    drop(first);
    assert_eq!(likeliest(), 2);
    drop(second);
    assert!(!whole.is_asked());
    assert_eq!(likeliest(), 0);
}
