use super::*;

/// A desk with a clock that stands until it is told to go on.
struct Desk {
    state: Lifecycle,
    now: Instant,
}

impl Desk {
    fn new(workers: usize, most: usize) -> Self {
        Self { state: Lifecycle::new(workers, most), now: Instant::now() }
    }

    fn put(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.state.handle(input, self.now);
        effects.into_iter().filter(|effect| !matches!(effect, Effect::WakeAt(_))).collect()
    }

    fn asked(&self, client: &str, id: &str) -> Asked {
        let ticket = Ticket { client: client.into(), id: id.into() };
        let allowed = Duration::from_secs(60);
        Asked {
            ticket,
            text: format!("question {id}"),
            content: id.as_bytes().to_vec(),
            redelivered: false,
            priority: Priority::Normal,
            allowed,
            deadline: self.now + allowed,
            suspect: false,
        }
    }

    /// Admits a question and makes its door ready; gives its slot and the effects of the latter.
    fn take(&mut self, asked: Asked, durable: bool) -> (Slot, Vec<Effect>) {
        let effects = self.put(Input::Asked(asked));
        let [Effect::Admitted(slot)] = effects[..] else { panic!("not admitted: {effects:?}") };
        (slot, self.put(Input::Entered(slot, durable)))
    }

    fn ask(&mut self, client: &str, id: &str) -> (Slot, Vec<Effect>) {
        self.take(self.asked(client, id), false)
    }

    /// The whole way of a question that was started.
    fn finish(&mut self, slot: Slot) -> Vec<Effect> {
        assert_eq!(self.put(Input::Worked(slot, Worked::Answered)), [Effect::Reply(slot)]);
        assert_eq!(self.put(Input::Done(slot)), []);
        self.put(Input::Freed(slot, Duration::from_secs(1)))
    }

    fn refusal(&mut self, asked: Asked) -> Fault {
        match &self.put(Input::Asked(asked))[..] {
            [Effect::Refused(fault)] => fault.clone(),
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[test]
fn a_question_goes_its_way() {
    let mut desk = Desk::new(1, 8);
    let (slot, effects) = desk.ask("a", "1");
    assert_eq!(effects, [Effect::Start(slot)]);
    assert_eq!((desk.state.depth(), desk.state.waiting()), (1, 0));
    assert_eq!(desk.finish(slot), []);
    assert_eq!(desk.state.depth(), 0);
}

#[test]
fn workers_bound_the_work() {
    let mut desk = Desk::new(2, 8);
    let (first, begun) = desk.ask("a", "1");
    let (second, also) = desk.ask("b", "2");
    let (third, waits) = desk.ask("c", "3");
    assert_eq!((begun, also, waits), (vec![Effect::Start(first)], vec![Effect::Start(second)], vec![]));
    assert_eq!(desk.finish(second), [Effect::Start(third)]);
}

#[test]
fn a_worker_is_busy_until_the_reply_is_out() {
    let mut desk = Desk::new(1, 8);
    let (first, _) = desk.ask("a", "1");
    let (second, _) = desk.ask("a", "2");
    desk.put(Input::Worked(first, Worked::Answered));
    assert_eq!(desk.put(Input::Done(first)), [], "its last word is safe, not sent");
    assert_eq!(desk.put(Input::Freed(first, Duration::ZERO)), [Effect::Start(second)]);
}

#[test]
fn nothing_starts_before_its_door_is_ready() {
    let mut desk = Desk::new(1, 8);
    let asked = desk.asked("a", "1");
    assert_eq!(desk.put(Input::Asked(asked)), [Effect::Admitted(1)]);
    let (second, effects) = desk.ask("b", "2");
    assert_eq!(effects, [Effect::Start(second)], "others are not held up");
    desk.put(Input::Withdrawn(1));
    assert_eq!(desk.state.depth(), 1);
    assert_eq!(desk.put(Input::Entered(1, true)), [], "it is gone");
}

#[test]
fn the_same_ticket_is_one_question() {
    let mut desk = Desk::new(1, 8);
    let (slot, _) = desk.ask("a", "1");
    let again = desk.asked("a", "1");
    assert_eq!(desk.put(Input::Asked(again.clone())), [Effect::Repeated]);
    let reworded = Asked { content: b"another encoding".to_vec(), ..again.clone() };
    assert_eq!(desk.put(Input::Asked(reworded)), [Effect::Repeated], "the same text in other bytes");
    let other = Asked { content: b"x".to_vec(), text: "another question".into(), ..again.clone() };
    assert_eq!(desk.refusal(other).code, ErrorCode::BadRequest);
    assert_eq!(desk.state.counts().repeated, 2);
    // Another client may use the same id, and the same client after the end.
    let (second, _) = desk.ask("b", "1");
    assert_eq!(desk.finish(slot), [Effect::Start(second)]);
    assert_eq!(desk.ask("a", "1").1, []);
}

#[test]
fn a_redelivery_is_known_by_its_content() {
    let mut desk = Desk::new(1, 8);
    let first = Asked { content: b"same".to_vec(), ..desk.asked("a", "generated-1") };
    desk.take(first, false);
    let second = Asked { content: b"same".to_vec(), ..desk.asked("a", "generated-2") };
    let redelivered = Asked { redelivered: true, ..second.clone() };
    assert_eq!(desk.put(Input::Asked(redelivered)), [Effect::Repeated]);
    assert!(matches!(desk.put(Input::Asked(second))[..], [Effect::Admitted(_)]), "asked twice, answered twice");
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let mut desk = Desk::new(1, 4);
    desk.ask("a", "at work");
    for id in ["1", "2", "3"] {
        desk.ask("a", id);
    }
    let fault = desk.refusal(desk.asked("a", "beyond its share"));
    assert_eq!(fault.code, ErrorCode::QueueFull);
    // Five questions of a second each, the refused one included.
    assert_eq!(fault.retry_after_ms, Some(5000));
    desk.ask("b", "another client");
    assert_eq!(desk.refusal(desk.asked("c", "full")).code, ErrorCode::QueueFull);
    assert_eq!(desk.state.counts().refused, 2);
    desk.state.set_queue(16);
    assert_eq!(desk.ask("c", "room again").1, []);
}

#[test]
fn resumed_questions_have_a_place() {
    let mut desk = Desk::new(1, 1);
    desk.ask("a", "1");
    for id in ["2", "3", "4"] {
        let asked = desk.asked("a", id);
        assert!(matches!(desk.put(Input::Resumed(asked))[..], [Effect::Admitted(_)]));
    }
    assert_eq!(desk.state.depth(), 4);
}

#[test]
fn the_estimate_follows_the_work() {
    let mut desk = Desk::new(1, 8);
    for n in 0..50 {
        let (slot, _) = desk.ask("a", &n.to_string());
        desk.put(Input::Worked(slot, Worked::Answered));
        desk.put(Input::Done(slot));
        desk.put(Input::Freed(slot, Duration::from_secs(9)));
    }
    let mean = desk.state.mean().as_secs_f64();
    assert!((8.9..=9.0).contains(&mean), "{mean}");
}

#[test]
fn questions_that_wait_too_long_are_ended() {
    let mut desk = Desk::new(1, 8);
    let (first, _) = desk.ask("a", "1");
    let (second, _) = desk.ask("a", "2");
    let soon = Asked { deadline: desk.now + Duration::from_secs(5), allowed: Duration::from_secs(5), ..desk.asked("b", "3") };
    let [Effect::Admitted(third)] = desk.put(Input::Asked(soon))[..] else { panic!("not admitted") };
    let wake = desk.now + Duration::from_secs(5);
    assert_eq!(desk.state.handle(Input::Entered(third, false), desk.now), [Effect::WakeAt(Some(wake))]);
    desk.now = wake;
    let effects = desk.put(Input::Tick);
    let [Effect::End(slot, fault)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((*slot, fault.code), (third, ErrorCode::DeadlineExceeded));
    assert!(fault.message.contains("5000 ms"), "{fault}");
    // The question at work has a deadline of its own in the engine.
    desk.now += Duration::from_secs(60);
    assert!(matches!(desk.put(Input::Tick)[..], [Effect::End(slot, _)] if slot == second));
    assert_eq!(desk.state.counts().expired, 2);
    assert_eq!(desk.put(Input::Worked(first, Worked::Failed)), [Effect::Reply(first)]);
}

#[test]
fn a_question_is_cancelled_wherever_it_is() {
    let mut desk = Desk::new(1, 8);
    let (at_work, _) = desk.ask("a", "x");
    let (waiting, _) = desk.ask("b", "x");
    let asked = desk.asked("c", "x");
    let [Effect::Admitted(admitted)] = desk.put(Input::Asked(asked))[..] else { panic!("not admitted") };
    let effects = desk.put(Input::Cancel("x".into()));
    assert!(
        matches!(&effects[..], [Effect::Stop(a), Effect::End(w, fault)]
        if (*a, *w, fault.code) == (at_work, waiting, ErrorCode::Cancelled)),
        "{effects:?}"
    );
    assert!(matches!(&desk.put(Input::Entered(admitted, true))[..], [Effect::End(slot, _)] if *slot == admitted));
    assert_eq!(desk.put(Input::Cancel("nobody".into())), []);
    assert_eq!(desk.put(Input::Worked(at_work, Worked::Cancelled)), [Effect::Reply(at_work)]);
    // Its end is on the way: nothing is left to cancel.
    assert_eq!(desk.put(Input::Cancel("x".into())), []);
}

#[test]
fn a_hang_up_cancels_the_question() {
    let mut desk = Desk::new(1, 8);
    let (first, _) = desk.ask("a", "1");
    let (second, _) = desk.ask("a", "2");
    assert!(matches!(desk.put(Input::Gone(second))[..], [Effect::End(slot, _)] if slot == second));
    assert_eq!(desk.put(Input::Gone(first)), [Effect::Stop(first)]);
}

#[test]
fn a_question_that_waits_for_the_library_frees_its_worker() {
    let mut desk = Desk::new(1, 8);
    let (patient, _) = desk.ask("a", "1");
    let (next, effects) = desk.ask("a", "2");
    assert_eq!(effects, []);
    assert_eq!(desk.put(Input::Waits(patient)), [Effect::Start(next)]);
    // It is still at work: it can be cancelled, and it is answered whenever it has found something.
    assert_eq!(desk.put(Input::Cancel("1".into())), [Effect::Stop(patient)]);
    let mean = desk.state.mean();
    assert_eq!(desk.finish(patient), [], "the one worker has the second question");
    assert_eq!(desk.state.mean(), mean, "the wait is no work");
    let (third, effects) = desk.ask("a", "3");
    assert_eq!(effects, []);
    assert_eq!(desk.finish(next), [Effect::Start(third)]);
}

#[test]
fn a_suspect_keeps_its_worker_while_it_waits() {
    let mut desk = Desk::new(1, 8);
    let (patient, _) = desk.take(Asked { suspect: true, ..desk.asked("a", "1") }, false);
    let (_, effects) = desk.ask("a", "2");
    assert_eq!(effects, []);
    assert_eq!(desk.put(Input::Waits(patient)), []);
}

#[test]
fn suspects_are_tried_one_by_one() {
    let mut desk = Desk::new(2, 8);
    let suspects = ["1", "2"].map(|id| Asked { suspect: true, ..desk.asked("a", id) });
    let [first, second] = suspects.map(|asked| {
        let [Effect::Admitted(slot)] = desk.put(Input::Resumed(asked))[..] else { panic!("not admitted") };
        (slot, desk.put(Input::Entered(slot, true)))
    });
    assert_eq!((first.1, second.1), (vec![Effect::Start(first.0)], vec![]));
    let (innocent, effects) = desk.ask("b", "3");
    assert_eq!(effects, [Effect::Start(innocent)]);
    assert_eq!(desk.finish(innocent), []);
    assert_eq!(desk.finish(first.0), [Effect::Start(second.0)]);
}

#[test]
fn a_drain_lays_durable_questions_aside() {
    let mut desk = Desk::new(1, 8);
    let (at_work, _) = desk.take(desk.asked("a", "1"), true);
    let (durable, _) = desk.take(desk.asked("a", "2"), true);
    let (fleeting, _) = desk.take(desk.asked("a", "3"), false);
    let asked = desk.asked("a", "4");
    let [Effect::Admitted(late)] = desk.put(Input::Asked(asked))[..] else { panic!("not admitted") };
    let effects = desk.put(Input::Drain);
    assert!(
        matches!(&effects[..], [Effect::LayAside(d), Effect::End(f, fault)]
        if (*d, *f, fault.code) == (durable, fleeting, ErrorCode::NotReady)),
        "{effects:?}"
    );
    assert_eq!(desk.put(Input::Entered(late, true)), [Effect::LayAside(late)]);
    assert_eq!(desk.refusal(desk.asked("a", "5")).code, ErrorCode::NotReady);
    assert_eq!(desk.put(Input::GraceOver), [Effect::Stop(at_work)]);
    assert_eq!(desk.put(Input::Worked(at_work, Worked::Cancelled)), [Effect::LayAside(at_work)]);
    desk.put(Input::Done(fleeting));
    assert_eq!(desk.state.depth(), 0);
}

#[test]
fn a_drain_waits_for_an_answer_in_time() {
    let mut desk = Desk::new(1, 8);
    let (durable, _) = desk.take(desk.asked("a", "1"), true);
    desk.put(Input::Drain);
    assert_eq!(desk.put(Input::Worked(durable, Worked::Answered)), [Effect::Reply(durable)]);
    let mut desk = Desk::new(1, 8);
    let (fleeting, _) = desk.take(desk.asked("a", "1"), false);
    desk.put(Input::Drain);
    let effects = desk.put(Input::Worked(fleeting, Worked::Cancelled));
    assert!(matches!(&effects[..], [Effect::End(slot, fault)] if (*slot, fault.code) == (fleeting, ErrorCode::NotReady)));
}

/// Random inputs: every question that entered ends exactly once, workers are never more than there are, and the desk is empty at
/// the end.
#[test]
fn every_question_ends_once() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut desk = Desk::new(random.usize(1..4), random.usize(1..9));
        let (mut entered, mut at_work, mut ended) = (HashMap::new(), Vec::new(), HashMap::<Slot, u32>::new());
        let mut ending = Vec::new();
        let mut n = 0;
        for step in 0..400 {
            let input = match random.u32(0..12) {
                _ if step == 350 => Input::Drain,
                _ if step == 380 => Input::GraceOver,
                0..=3 => {
                    n += 1;
                    let ticket = random.u32(0..20).to_string();
                    let asked =
                        Asked { suspect: random.u8(0..5) == 0, ..desk.asked(["a", "b", "c"][random.usize(0..3)], &ticket) };
                    if n % 7 == 0 {
                        Input::Resumed(Asked { ticket: Ticket { id: format!("r{n}"), ..asked.ticket.clone() }, ..asked })
                    } else {
                        Input::Asked(asked)
                    }
                }
                4..=7 if !at_work.is_empty() => {
                    let slot = at_work.swap_remove(random.usize(0..at_work.len()));
                    Input::Worked(slot, [Worked::Answered, Worked::Cancelled, Worked::Failed][random.usize(0..3)])
                }
                8 | 9 if !ending.is_empty() => Input::Done(ending.swap_remove(random.usize(0..ending.len()))),
                10 => Input::Cancel(random.u32(0..20).to_string()),
                _ => {
                    desk.now += Duration::from_secs(random.u64(0..20));
                    Input::Tick
                }
            };
            let worked = if let Input::Worked(slot, _) = &input { Some(*slot) } else { None };
            let mut effects = desk.put(input);
            if let Some(slot) = worked {
                effects.extend(desk.put(Input::Freed(slot, Duration::from_millis(5))));
            }
            while let Some(effect) = effects.pop() {
                match effect {
                    Effect::Admitted(slot) => {
                        entered.insert(slot, random.bool());
                        effects.extend(desk.put(Input::Entered(slot, entered[&slot])));
                    }
                    Effect::Start(slot) => {
                        at_work.push(slot);
                        assert!(at_work.len() <= desk.state.workers, "seed {seed}");
                    }
                    Effect::Reply(slot) | Effect::End(slot, _) => {
                        *ended.entry(slot).or_default() += 1;
                        ending.push(slot);
                    }
                    Effect::LayAside(slot) => {
                        assert!(entered[&slot], "seed {seed}: not durable");
                        *ended.entry(slot).or_default() += 1;
                    }
                    Effect::Stop(_) | Effect::Repeated | Effect::Refused(_) | Effect::WakeAt(_) => {}
                }
            }
        }
        for slot in at_work {
            for effect in desk.put(Input::Worked(slot, Worked::Cancelled)) {
                let (Effect::LayAside(slot) | Effect::End(slot, _)) = effect else { panic!("seed {seed}: {effect:?}") };
                *ended.entry(slot).or_default() += 1;
                desk.put(Input::Done(slot));
            }
        }
        for slot in ending {
            desk.put(Input::Done(slot));
        }
        assert_eq!(desk.state.depth(), 0, "seed {seed}");
        assert!(entered.keys().all(|slot| ended.get(slot) == Some(&1)), "seed {seed}: {ended:?}");
        assert!(entered.len() > 20, "seed {seed}");
    }
}
