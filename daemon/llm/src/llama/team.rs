//! The threads of a forward pass: the few functions of OpenMP's run-time library that ggml calls, with waits that adapt to the
//! load.
//!
//! ggml's loops meet at hundreds of barriers for each token, microseconds apart. The way of waiting there decides the speed, and
//! libgomp has one fixed way for the life of a process. Spinning wins by a factor of four on quiet cores. It loses by a factor of
//! twenty on shared cores, whose missing thread is not running. Sleeping is the other way round. Here a thread spins as long as
//! that has paid lately, and then sleeps in the kernel.
//!
//! gcc turns `#pragma omp` into calls of `GOMP_…`. A program that calls [`define_openmp!`](crate::define_openmp) defines these
//! symbols itself, and the linker takes them in place of libgomp's. This crate defines none: a library must not replace its
//! user's OpenMP. The set is complete for ggml's compute threads: `parallel` with a number of threads, `single`, `barrier`. A
//! `parallel` without a number runs on the caller alone: ggml's tables for IQ quantisation use it, with loops that stay
//! libgomp's.
//!
//! The feature `dynamic-backends` builds llama.cpp as shared libraries and replaces no symbol of libgomp. `make cross` puts
//! `cross-targets/ggml/openmp.c` into the libraries, which answers gcc's and clang's calls. `offer` hands it the functions of
//! this module.

use std::cell::{Cell, RefCell};
use std::ffi::{c_uint, c_void};
use std::hint::spin_loop;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::futex;

/// Body of a parallel region; the compiler passes it with its data.
pub type Body = unsafe extern "C" fn(*mut c_void);

/// Longest time that a thread spins before it sleeps: a few times the cost of sleeping and waking.
const LONGEST: Duration = Duration::from_micros(400);
/// The same while cores are shared: enough for a thread on its last instructions to arrive.
const SHORTEST: Duration = Duration::from_micros(1);
/// Time, and share of its time, that each member of a region may lose in waits too long to spin through. One member does not
/// count: it arrives last.
const LOSS: Duration = Duration::from_micros(800);
const LOSS_SHARE: f64 = 0.3;
/// Most regions that sleep at once before spinning is tried again: 1, then twice as many each time that spinning did not pay.
const LONGEST_PAUSE: u32 = 32;

/// How threads wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Adapt to the load; only measurements want another way.
    Follow,
    /// Always spinning.
    Spin,
    /// Always asleep at once.
    Sleep,
}

static WAITING: AtomicU8 = AtomicU8::new(Waiting::Follow as u8);

/// Sets how the threads of this process wait from the next forward pass on. For measurements only.
pub fn set_waiting(waiting: Waiting) {
    WAITING.store(waiting as u8, Ordering::Relaxed);
}

/// Turns of a spinning loop that fit into a time. A turn takes 1 ns on one processor, 50 ns on another.
fn turns(time: Duration) -> u32 {
    static SAMPLE_NS: OnceLock<u64> = OnceLock::new();
    const SAMPLE: u32 = 256;
    let sample = SAMPLE_NS.get_or_init(|| {
        let word = AtomicU32::new(0);
        let time = || {
            let started = Instant::now();
            for _ in 0..SAMPLE {
                if word.load(Ordering::Acquire) != 0 {
                    break;
                }
                spin_loop();
            }
            started.elapsed()
        };
        // The quickest of a few samples: something disturbed the others.
        let sample = (0..5).map(|_| time()).min().unwrap_or_default();
        (sample.as_nanos() as u64).max(1)
    });
    let turns = time.as_nanos() as u64 * u64::from(SAMPLE) / sample;
    turns.clamp(1, 1 << 28) as u32
}

/// A number that threads wait on.
#[derive(Default)]
struct Signal {
    value: AtomicU32,
    /// Number of threads that sleep, or are about to.
    sleepers: AtomicU32,
}

impl Signal {
    fn change(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A wake cannot fail: the word is ours.
            let _ = futex::wake(&self.value, futex::Flags::PRIVATE, i32::MAX as u32);
        }
    }

    /// Spins until the value is no longer `old`; `false` after `turns`.
    fn spin(&self, old: u32, turns: u32) -> bool {
        for _ in 0..turns {
            if self.value.load(Ordering::Acquire) != old {
                return true;
            }
            spin_loop();
        }
        false
    }

    /// Sleeps until the value is no longer `old`.
    fn sleep(&self, old: u32) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.value.load(Ordering::SeqCst) == old {
            // Returns at once if the value has changed in between. The loop checks after interruptions.
            let _ = futex::wait(&self.value, futex::Flags::PRIVATE, old, None);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The shared state of one team.
#[derive(Default)]
struct Shared {
    arrived: AtomicU32,
    phase: Signal,
    /// How long each member spins, in turns.
    patience: AtomicU32,
    /// Start of the region, and time lost so far in waits too long to spin through, in nanoseconds.
    began: AtomicU64,
    lost: AtomicU64,
}

impl Shared {
    /// Waits until all `members` have called this.
    fn meet(&self, members: u32) {
        let phase = self.phase.value.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == members {
            self.arrived.store(0, Ordering::Relaxed);
            self.phase.change();
            return;
        }
        let patience = self.patience.load(Ordering::Relaxed);
        if self.phase.spin(phase, patience) {
            return;
        }
        let from = nanoseconds();
        self.phase.sleep(phase);
        if patience > turns(SHORTEST) {
            let time = nanoseconds() - from + LONGEST.as_nanos() as u64;
            self.lost.fetch_add(time, Ordering::Relaxed);
            if !self.pays(members) {
                // No member spins any longer in this region, unless `Waiting::Spin` is set.
                let _ = self.patience.compare_exchange(patience, turns(SHORTEST), Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Whether spinning has been right in this region so far.
    fn pays(&self, members: u32) -> bool {
        let elapsed = nanoseconds() - self.began.load(Ordering::Relaxed);
        let allowed = (LOSS.as_nanos() as f64 + LOSS_SHARE * elapsed as f64) * f64::from(members - 1);
        self.lost.load(Ordering::Relaxed) as f64 <= allowed
    }
}

/// Nanoseconds since the first call.
fn nanoseconds() -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// When to spin and when to sleep at once, region by region.
///
/// On quiet cores the other members are microseconds away, and nearly every wait ends while it spins. Other work on a core takes
/// its thread away for milliseconds, at one barrier after the other. The scheduler counts spinning against a thread and preempts
/// it in turn. Members that sleep at once use less than their share and run as soon as they are woken.
#[derive(Debug, PartialEq, Eq)]
struct Habit {
    /// Regions left to sleep in.
    pause: u32,
    /// Length of the next pause, in regions.
    next: u32,
}

impl Habit {
    /// Whether to spin in the next region.
    fn spins(&mut self) -> bool {
        let spins = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        spins
    }

    /// Learns whether spinning paid in a region.
    fn learn(&mut self, paid: bool) {
        if paid {
            self.next = (self.next / 2).max(1);
        } else {
            self.pause = self.next;
            self.next = (self.next * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The place of one member in its team, and its next region.
struct Seat {
    shared: Arc<Shared>,
    /// Changes when there is a region to run, or the team ends.
    go: Signal,
    body: AtomicPtr<c_void>,
    data: AtomicPtr<c_void>,
    members: AtomicU32,
}

struct Worker {
    seat: Arc<Seat>,
    thread: Option<JoinHandle<()>>,
}

/// The threads that help one thread of the program. They sleep while idle, and end with that thread.
struct Team {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    habit: Habit,
}

impl Team {
    fn new() -> Self {
        Self { shared: Arc::default(), workers: Vec::new(), habit: Habit { pause: 0, next: 1 } }
    }

    /// Runs `body` in `threads` threads, this one among them.
    fn run(&mut self, threads: usize, body: Body, data: *mut c_void) {
        let helpers = self.grow(threads - 1);
        let members = helpers as u32 + 1;
        let shared = &*self.shared;
        let waiting = WAITING.load(Ordering::Relaxed);
        let follows = waiting == Waiting::Follow as u8;
        let spins = follows && self.habit.spins();
        shared.lost.store(0, Ordering::Relaxed);
        shared.began.store(nanoseconds(), Ordering::Relaxed);
        let patience = match () {
            () if spins => turns(LONGEST),
            () if waiting == Waiting::Spin as u8 => u32::MAX,
            () if waiting == Waiting::Sleep as u8 => 0,
            () => turns(SHORTEST),
        };
        shared.patience.store(patience, Ordering::Relaxed);
        for worker in &self.workers[..helpers] {
            worker.seat.body.store(body as *mut c_void, Ordering::Relaxed);
            worker.seat.data.store(data, Ordering::Relaxed);
            worker.seat.members.store(members, Ordering::Release);
            worker.seat.go.change();
        }
        let member = Member { shared, number: 0, members };
        // SAFETY: the caller of `parallel` promises it.
        member.run(|| unsafe { body(data) });
        shared.meet(members);
        if spins {
            self.habit.learn(shared.pays(members));
        }
    }

    /// Starts threads up to `helpers`; returns how many the system allowed.
    fn grow(&mut self, helpers: usize) -> usize {
        while self.workers.len() < helpers {
            let seat = Arc::new(Seat {
                shared: Arc::clone(&self.shared),
                go: Signal::default(),
                body: AtomicPtr::new(ptr::null_mut()),
                data: AtomicPtr::new(ptr::null_mut()),
                members: AtomicU32::new(0),
            });
            let (own, number) = (Arc::clone(&seat), self.workers.len() as u32 + 1);
            let thread = std::thread::Builder::new().name(format!("team-{number}")).spawn(move || serve(&own, number));
            let Ok(thread) = thread else { break };
            self.workers.push(Worker { seat, thread: Some(thread) });
        }
        helpers.min(self.workers.len())
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.seat.members.store(0, Ordering::Release);
            worker.seat.go.change();
            if let Some(thread) = worker.thread.take() {
                // The thread runs only C code, which does not unwind.
                let _ = thread.join();
            }
        }
    }
}

/// A member's life: one region after the other.
fn serve(seat: &Seat, number: u32) {
    let mut seen = 0;
    loop {
        if !seat.go.spin(seen, seat.shared.patience.load(Ordering::Relaxed)) {
            seat.go.sleep(seen);
        }
        seen = seen.wrapping_add(1);
        let members = seat.members.load(Ordering::Acquire);
        if members == 0 {
            return;
        }
        let (body, data) = (seat.body.load(Ordering::Acquire), seat.data.load(Ordering::Acquire));
        let member = Member { shared: &raw const *seat.shared, number, members };
        // SAFETY: `parallel` stored a function of this type, and waits at the last barrier while `data` lives.
        member.run(|| unsafe { std::mem::transmute::<*mut c_void, Body>(body)(data) });
        seat.shared.meet(members);
    }
}

/// This thread's part in the current region.
#[derive(Clone, Copy)]
struct Member {
    shared: *const Shared,
    number: u32,
    members: u32,
}

/// Outside of regions: a team of one.
const ALONE: Member = Member { shared: ptr::null(), number: 0, members: 1 };

thread_local! {
    static MEMBER: Cell<Member> = const { Cell::new(ALONE) };
    static TEAM: RefCell<Option<Team>> = const { RefCell::new(None) };
}

impl Member {
    fn run(self, body: impl FnOnce()) {
        let before = MEMBER.replace(self);
        body();
        MEMBER.set(before);
    }
}

/// `#pragma omp parallel`
///
/// # Safety
/// `body` takes `data` and may be called by several threads at once; the compiler ensures both.
pub unsafe extern "C" fn parallel(body: Body, data: *mut c_void, threads: c_uint, _flags: c_uint) {
    // SAFETY: as promised by the caller.
    let alone = || ALONE.run(|| unsafe { body(data) });
    if threads <= 1 || MEMBER.get().members > 1 {
        return alone();
    }
    // There is no team any more while thread-local memory is destroyed.
    let ran = TEAM.try_with(|team| match team.try_borrow_mut() {
        Ok(mut team) => {
            team.get_or_insert_with(Team::new).run(threads as usize, body, data);
            true
        }
        // Nested in a region that got no helpers.
        Err(_) => false,
    });
    if !ran.unwrap_or(false) {
        alone();
    }
}

/// `#pragma omp barrier`
pub extern "C" fn barrier() {
    let member = MEMBER.get();
    if member.members > 1 {
        // SAFETY: the shared state outlives the region.
        unsafe { (*member.shared).meet(member.members) };
    }
}

/// The functions of this module, in the form that `openmp.c` takes.
#[cfg(feature = "dynamic-backends")]
#[repr(C)]
struct Functions {
    parallel: unsafe extern "C" fn(Body, *mut c_void, c_uint, c_uint),
    barrier: extern "C" fn(),
    number: extern "C" fn() -> i32,
    members: extern "C" fn() -> i32,
}

/// Hands the functions of this module to llama.cpp's libraries. Libraries of another build keep their own OpenMP.
#[cfg(feature = "dynamic-backends")]
pub(super) fn offer() {
    // SAFETY: the name ends in zero.
    let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"vademecum_team".as_ptr()) };
    if function.is_null() {
        return log::debug!("llama.cpp's libraries bring their own OpenMP");
    }
    let functions = Functions { parallel, barrier, number: thread_num, members: num_threads };
    // SAFETY: `openmp.c` defines that name as a function of this type, and copies its argument.
    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const Functions)>(function)(&raw const functions) };
}

/// `#pragma omp single`: true for the one thread that runs the block.
pub extern "C" fn single_start() -> bool {
    MEMBER.get().number == 0
}

/// The number of this thread in its team, from 0.
pub extern "C" fn thread_num() -> i32 {
    MEMBER.get().number as i32
}

/// The threads of this thread's team.
pub extern "C" fn num_threads() -> i32 {
    MEMBER.get().members as i32
}

/// Defines the symbols of OpenMP's run-time library that ggml calls. A program or a test calls it once, a library never.
#[macro_export]
macro_rules! define_openmp {
    () => {
        #[allow(unsafe_code, reason = "the symbols of another library")]
        mod openmp_symbols {
            use std::ffi::{c_uint, c_void};

            // SAFETY: the compiler's calls keep the promise of `parallel`.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn GOMP_parallel(
                body: $crate::llama::team::Body,
                data: *mut c_void,
                threads: c_uint,
                flags: c_uint,
            ) {
                // SAFETY: as above.
                unsafe { $crate::llama::team::parallel(body, data, threads, flags) }
            }

            // SAFETY: the name is OpenMP's, and this is its function.
            #[unsafe(no_mangle)]
            extern "C" fn GOMP_barrier() {
                $crate::llama::team::barrier();
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn GOMP_single_start() -> bool {
                $crate::llama::team::single_start()
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn omp_get_thread_num() -> i32 {
                $crate::llama::team::thread_num()
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn omp_get_num_threads() -> i32 {
                $crate::llama::team::num_threads()
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Observations of a region's threads: number, size of the team, whether the thread runs `single`.
    #[derive(Default)]
    struct Seen {
        members: Mutex<Vec<(i32, i32, bool)>>,
        steps: [AtomicU32; 4],
        torn: AtomicU32,
    }

    const STEPS: u32 = 2000;

    unsafe extern "C" fn region(data: *mut c_void) {
        // SAFETY: the test passes a `Seen` and waits.
        let seen = unsafe { &*data.cast::<Seen>() };
        let (number, members) = (thread_num(), num_threads());
        seen.members.lock().expect("lock").push((number, members, single_start()));
        for step in 1..=STEPS {
            seen.steps[number as usize].store(step, Ordering::Relaxed);
            barrier();
            // Between two barriers all threads are at the same step.
            if seen.steps[..members as usize].iter().any(|other| other.load(Ordering::Relaxed) != step) {
                seen.torn.fetch_add(1, Ordering::Relaxed);
            }
            barrier();
        }
    }

    fn run(threads: u32) -> Vec<(i32, i32, bool)> {
        let seen = Seen::default();
        // SAFETY: `region` takes a `Seen` and may run in several threads.
        unsafe { parallel(region, (&raw const seen).cast_mut().cast(), threads, 0) };
        assert_eq!(seen.torn.load(Ordering::Relaxed), 0);
        let mut members = seen.members.into_inner().expect("lock");
        members.sort_unstable();
        members
    }

    #[test]
    fn members_meet_with_every_way_of_waiting() {
        let all = |n: i32| (0..n).map(|number| (number, n, number == 0)).collect::<Vec<_>>();
        for waiting in [Waiting::Follow, Waiting::Sleep, Waiting::Follow] {
            set_waiting(waiting);
            for threads in [2, 4, 1, 3, 0, 2] {
                assert_eq!(run(threads), all(threads.max(1) as i32), "{waiting:?}");
            }
        }
        assert_eq!((thread_num(), num_threads()), (0, 1));
        barrier();
    }

    /// Collects the kernel's thread ids of a region's members.
    unsafe extern "C" fn who(data: *mut c_void) {
        // SAFETY: the test passes this mutex and waits.
        let all = unsafe { &*data.cast::<Mutex<Vec<i32>>>() };
        all.lock().expect("lock").push(rustix::thread::gettid().as_raw_nonzero().get());
    }

    #[test]
    fn teams_end_with_their_thread() {
        let team = || {
            let all = Mutex::new(Vec::new());
            let run = || {
                // SAFETY: `who` takes this mutex and may run in several threads.
                unsafe { parallel(who, (&raw const all).cast_mut().cast(), 3, 0) };
            };
            run();
            run();
            let mut all = all.into_inner().expect("lock");
            all.sort_unstable();
            assert_eq!(all.len(), 6);
            all.dedup();
            assert_eq!(all.len(), 3, "the second region runs on the same threads");
            all
        };
        let threads = [std::thread::spawn(team), std::thread::spawn(team)];
        let mut all: Vec<i32> = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        // The kernel takes a moment to forget a thread that has been joined.
        let gone = |thread: &i32| {
            let task = std::path::PathBuf::from(format!("/proc/self/task/{thread}"));
            while task.exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        // A helper that stays behind is a hang, which the test runner stops.
        all.iter().for_each(gone);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn a_habit_backs_off_and_comes_back() {
        let mut habit = Habit { pause: 0, next: 1 };
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let mut asleep = 0;
            while !habit.spins() {
                asleep += 1;
            }
            pauses.push(asleep);
            habit.learn(false);
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 32, 32, 32]);
        while !habit.spins() {}
        for _ in 0..6 {
            habit.learn(true);
            assert!(habit.spins());
        }
        assert_eq!(habit, Habit { pause: 0, next: 1 });
    }

    #[test]
    fn spinning_is_counted_in_time() {
        assert!(turns(LONGEST) > turns(SHORTEST) && turns(SHORTEST) >= 1);
        assert_eq!(turns(Duration::ZERO), 1);
    }
}
