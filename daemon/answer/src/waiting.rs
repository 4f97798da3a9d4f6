//! A question that finds nothing waits while the library still lacks documents.
//!
//! It waits for the documents that are lacking when it comes, at most three quarters of the time that its deadline leaves. It
//! holds no worker of the desk meanwhile, because the desk has few of them and other questions find their answer at once. The
//! waiting questions search one after the other, and rest three times as long: the reading of the documents goes on.

use super::{AnswerError, Answerer, Evidence, Kind, Turn};
use library::Waiting;
use library::retrieve::RetrieveError;
use library::store::terms::Language;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::{Cancel, LibraryState, LibraryWork, Progress, Question};

/// Pause after a search of a waiting question, in times of that search.
const REST: u32 = 3;

/// The bounds of waiting; clones share them.
#[derive(Clone)]
pub(super) struct WaitingRoom {
    /// Questions that may still begin to wait. Beyond them the answer is given at once.
    places: Arc<Semaphore>,
    /// Held by the waiting question that searches.
    turn: Arc<Semaphore>,
}

/// The result of a search.
pub(super) struct Searched<T> {
    /// Whether it has found something.
    pub(super) found: bool,
    /// Whether that is enough to wait no longer: findings that only reading can confirm are not.
    pub(super) sure: bool,
    /// The state of the library before the search, unless it was whole.
    pub(super) library: Option<LibraryState>,
    /// The findings.
    pub(super) evidence: T,
}

impl WaitingRoom {
    /// Lets at most `places` questions wait.
    pub(super) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Searches until something sure is found, until nothing is to come any more, or until `too_late`; then it searches once more.
    /// `begins` is called when the wait begins.
    ///
    /// # Errors
    /// A search failed, or the question was cancelled.
    pub(super) async fn search<T, S: Future<Output = Result<Searched<T>, AnswerError>>>(
        &self,
        waiting: &mut Waiting,
        cancel: &Cancel,
        too_late: impl Future<Output = ()>,
        begins: impl FnOnce(&mut Waiting),
        mut search: impl FnMut() -> S,
    ) -> Result<Searched<T>, AnswerError> {
        let mut comes = waiting.comes();
        let mut searched = search().await?;
        if searched.sure || !comes {
            return Ok(searched);
        }
        let Ok(_place) = self.places.try_acquire() else { return Ok(searched) };
        begins(waiting);
        let mut too_late = std::pin::pin!(too_late);
        while comes && !searched.sure {
            let turn = tokio::select! {
                () = cancel.cancelled() => return Err(AnswerError::Cancelled),
                () = &mut too_late => None,
                turn = self.turn(waiting) => turn,
            };
            comes = waiting.comes() && turn.is_some();
            let begun = Instant::now();
            searched = search().await?;
            if let Some(turn) = turn {
                rest(turn, begun.elapsed() * REST);
            }
        }
        Ok(searched)
    }

    /// Waits for a change, then for the turn to search.
    async fn turn(&self, waiting: &mut Waiting) -> Option<OwnedSemaphorePermit> {
        waiting.changed().await;
        Arc::clone(&self.turn).acquire_owned().await.ok()
    }
}

impl Answerer {
    /// The evidence for a question. While there is none and the library is not whole, the question waits.
    pub(super) async fn patient_evidence(
        &self,
        question: &Question,
        (kind, told): (Kind, Option<Language>),
        earlier: Option<&Turn>,
        cancel: &Cancel,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Searched<Evidence>, AnswerError> {
        let store = self.retriever.store();
        let search = || async {
            // Read before the search: a document that comes in between is told of as lacking, although it was searched.
            let state = store.library_state(Some(&question.collection)).map_err(RetrieveError::from)?;
            let (found, evidence) = self.evidence(question, (kind, told), earlier).await?;
            let sure = found && evidence.confidence >= self.options.threshold;
            Ok(Searched { found, sure, library: (state.state != LibraryWork::Whole).then_some(state), evidence })
        };
        let too_late = tokio::time::sleep_until(gives_up(question.asked, question.allowed));
        let begins = |waiting: &mut Waiting| {
            waiting.ask(&question.text);
            progress(Progress::Waiting);
        };
        let mut waiting = store.wholeness().waiting(&question.collection);
        self.waiting_room.search(&mut waiting, cancel, too_late, begins, search).await
    }
}

/// Gives the turn to the next question after a pause.
fn rest(turn: OwnedSemaphorePermit, pause: Duration) {
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        drop(turn);
    });
}

/// The instant at which a question gives up waiting: three quarters of its remaining time are over. The rest is for its answer.
pub(super) fn gives_up(asked: Instant, allowed: Duration) -> tokio::time::Instant {
    let now = Instant::now();
    (now + (asked + allowed).saturating_duration_since(now) * 3 / 4).into()
}

/// The answer while the library is not whole: `template` with its numbers.
pub(super) fn not_yet(template: &str, library: &LibraryState) -> String {
    template.replace("{have}", &library.have.to_string()).replace("{of}", &library.of.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use library::{Putting, Wholeness};
    use std::cell::Cell;
    use tokio::sync::oneshot;

    const STATE: LibraryState = LibraryState { state: LibraryWork::Ingesting, have: 3, of: 40 };

    /// A library of one number; a question is answered by the number it looks for.
    struct Room {
        whole: Wholeness,
        chairs: WaitingRoom,
        holds: Cell<u32>,
        unsure: Cell<bool>,
        searches: Cell<u32>,
        begun: Cell<bool>,
        cancel: Cancel,
    }

    impl Room {
        fn new(places: usize) -> Self {
            let (whole, chairs) = (Wholeness::default(), WaitingRoom::new(places));
            Self {
                whole,
                chairs,
                holds: Cell::new(0),
                unsure: Cell::new(false),
                searches: Cell::new(0),
                begun: Cell::new(false),
                cancel: Cancel::default(),
            }
        }

        fn comes(&self, id: &str) -> Putting {
            self.whole.puts("c", id, false, None)
        }

        async fn ask(&self, wanted: u32, too_late: impl Future<Output = ()>) -> Result<Searched<u32>, AnswerError> {
            let mut waiting = self.whole.waiting("c");
            let search = || async move {
                self.searches.set(self.searches.get() + 1);
                let library = waiting_state(&self.whole);
                let found = self.holds.get() == wanted;
                Ok(Searched { found, sure: found && !self.unsure.get(), library, evidence: self.holds.get() })
            };
            let begins = |_: &mut Waiting| self.begun.set(true);
            self.chairs.search(&mut waiting, &self.cancel, too_late, begins, search).await
        }

        /// Asks, and lets the last document come after the first search.
        async fn ask_until_whole(&self, wanted: u32) -> Searched<u32> {
            let coming = self.comes("a");
            let come = async {
                self.until_searched(1).await;
                drop(coming);
            };
            tokio::join!(self.ask(wanted, std::future::pending()), come).0.expect("searched")
        }

        /// Lets the question get as far as it can.
        async fn until_searched(&self, times: u32) {
            while self.searches.get() < times {
                tokio::task::yield_now().await;
            }
        }
    }

    fn waiting_state(whole: &Wholeness) -> Option<LibraryState> {
        whole.waiting("c").comes().then_some(STATE)
    }

    #[tokio::test]
    async fn a_whole_library_is_searched_once() {
        let room = Room::new(1);
        let searched = room.ask(1, std::future::pending()).await.expect("searched");
        assert!(!searched.found && searched.library.is_none() && !room.begun.get());
        assert_eq!(room.searches.get(), 1);
    }

    #[tokio::test]
    async fn a_find_is_not_held_up() {
        let room = Room::new(1);
        let _coming = room.comes("a");
        room.holds.set(1);
        let searched = room.ask(1, std::future::pending()).await.expect("searched");
        assert!(searched.found && !room.begun.get());
        assert_eq!(searched.library, Some(STATE), "it says so all the same");
    }

    #[tokio::test]
    async fn a_question_is_answered_by_the_document_it_waited_for() {
        let room = Room::new(1);
        let (other, wanted, last) = (room.comes("a"), room.comes("b"), room.comes("c"));
        let come = async {
            room.until_searched(1).await;
            drop(other);
            room.until_searched(2).await;
            room.holds.set(7);
            drop(wanted);
        };
        let (searched, ()) = tokio::join!(room.ask(7, std::future::pending()), come);
        let searched = searched.expect("searched");
        assert!(searched.found && room.begun.get());
        assert_eq!((searched.evidence, room.searches.get(), searched.library), (7, 3, Some(STATE)));
        drop(last);
    }

    #[tokio::test]
    async fn a_find_that_only_reading_can_confirm_waits_for_a_better_one() {
        let room = Room::new(1);
        room.holds.set(7);
        room.unsure.set(true);
        let searched = room.ask_until_whole(7).await;
        assert!(searched.found && !searched.sure && room.begun.get(), "what there is goes on to reading at last");
        assert_eq!(room.searches.get(), 2);
    }

    #[tokio::test]
    async fn the_last_document_ends_the_wait() {
        let room = Room::new(1);
        let searched = room.ask_until_whole(7).await;
        assert!(!searched.found && searched.library.is_none(), "now it is final");
    }

    #[tokio::test]
    async fn the_deadline_ends_the_wait_with_a_last_look() {
        let room = Room::new(1);
        let coming = room.comes("a");
        let (late, too_late) = oneshot::channel();
        let come = async {
            room.until_searched(1).await;
            room.holds.set(7);
            late.send(()).expect("awaited");
        };
        let too_late = async { too_late.await.expect("sent") };
        let (searched, ()) = tokio::join!(room.ask(7, too_late), come);
        assert!(searched.expect("searched").found);
        let searched = room.ask(8, std::future::ready(())).await.expect("searched");
        assert_eq!((searched.found, searched.library), (false, Some(STATE)));
        drop(coming);
    }

    #[tokio::test]
    async fn a_cancel_ends_the_wait() {
        let room = Room::new(1);
        let _coming = room.comes("a");
        let come = async {
            room.until_searched(1).await;
            room.cancel.cancel();
        };
        let (searched, ()) = tokio::join!(room.ask(7, std::future::pending()), come);
        assert!(matches!(searched, Err(AnswerError::Cancelled)));
    }

    #[tokio::test]
    async fn a_question_without_a_place_does_not_wait() {
        let room = Room::new(0);
        let _coming = room.comes("a");
        let searched = room.ask(7, std::future::pending()).await.expect("searched");
        assert_eq!((searched.found, searched.library, room.begun.get()), (false, Some(STATE), false));
    }

    #[test]
    fn a_quarter_of_the_time_is_left_for_the_answer() {
        let now = Instant::now();
        let whole = Duration::from_secs(3600);
        let until = gives_up(now, whole).into_std() - now;
        assert!(until >= whole * 3 / 4 && until < whole * 4 / 5, "{until:?}");
        let late = gives_up(now.checked_sub(Duration::from_secs(9)).expect("a clock"), Duration::from_secs(1));
        assert!(late <= tokio::time::Instant::now(), "nothing is left");
    }

    #[test]
    fn the_answer_has_the_numbers() {
        let text = "The library is still being read ({have} of {of} documents).";
        assert_eq!(not_yet(text, &STATE), "The library is still being read (3 of 40 documents).");
    }
}
