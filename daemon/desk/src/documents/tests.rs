use super::*;
use crate::rooms::desk;
use std::time::Duration;

fn put(document: &str, text: &str) -> wire::Put {
    wire::Put { document: document.into(), text: Some(text.into()), ..wire::Put::default() }
}

/// Whether the word of a change has been given since the last look.
async fn told(changed: &tokio::sync::Notify) -> bool {
    tokio::time::timeout(Duration::from_millis(1), changed.notified()).await.is_ok()
}

#[tokio::test]
async fn a_change_is_told_and_nothing_else() {
    let (desk, _, changed) = desk();
    let (reply, outcome) = desk.put("1".into(), put("a", "text")).await.expect("put");
    assert_eq!((reply.change, reply.chunks, outcome.title.as_str()), (Change::Added, 1, "title"));
    assert!(told(&changed).await);
    assert_eq!(desk.put("2".into(), put("a", "text")).await.expect("put").0.change, Change::Unchanged);
    assert!(!told(&changed).await, "nothing has changed");
    assert_eq!(desk.put("3".into(), put("a", "other")).await.expect("put").0.change, Change::Replaced);
    assert!(told(&changed).await);
    let delete = Delete { document: "a".into(), ..Delete::default() };
    assert!(desk.delete("4".into(), delete.clone()).await.expect("deleted").deleted);
    assert!(told(&changed).await);
    assert!(!desk.delete("5".into(), delete).await.expect("no such document").deleted);
    assert!(!told(&changed).await);
}

#[tokio::test]
async fn refusals_are_counted_and_tell_nobody() {
    let (desk, _, changed) = desk();
    for bad in
        [put("a", ""), wire::Put { text: None, ..put("a", "") }, wire::Put { collection: Some("A b".into()), ..put("a", "x") }]
    {
        assert_eq!(desk.put("1".into(), bad).await.expect_err("refused").code, ErrorCode::BadRequest);
    }
    assert_eq!(desk.figures().errors, 3);
    assert!(!told(&changed).await);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let (desk, ..) = desk();
    for document in ["a", "b", "c"] {
        desk.put("1".into(), put(document, "text")).await.expect("put");
    }
    let page = desk.list("2".into(), &List { skip: Some(1), limit: Some(1), ..List::default() }).await.expect("list");
    assert_eq!((page.total, page.documents.len(), page.documents[0].id.as_str()), (3, 1, "b"));
    assert!(desk.list("3".into(), &List { collection: Some("B".into()), ..List::default() }).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_hangs_up_gives_its_document_up() {
    let (desk, ..) = desk();
    let endless = tokio::spawn({
        let desk = desk.clone();
        async move { desk.put("1".into(), put("endless", "text")).await }
    });
    // The endless document holds the lock now or in a moment; the next document gets it afterwards.
    while desk.ingest_lock().try_lock().is_ok() {
        tokio::task::yield_now().await;
    }
    endless.abort();
    assert!(desk.put("2".into(), put("a", "text")).await.is_ok());
}
