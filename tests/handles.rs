//! Handles of shared objects on their way. Whatever becomes of the message, the object lives as
//! long as it must and no longer.

mod common;

use std::process::Command;

use common::{DEADLINE, Leftovers, as_program, eventually, finish, is_asleep, is_program};
use manyhands::prelude::*;
use manyhands::sync::Event;
use manyhands::{Queue, SharedValue, closure, engine::WaitPolicy, shm};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

fn forked() -> Pool<Forked> {
    Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap()
}

#[test]
fn a_forked_task_has_what_was_moved_into_it_until_it_ends() -> Result {
    let _none = Leftovers::none();
    let pool = forked();
    let (gate, value) = (SharedValue::new(0u8)?, SharedValue::new(7u64)?);
    let open = gate.clone();
    let task = pool.submit(
        move |x: u64| {
            while gate.get() == 0 {
                std::thread::yield_now();
            }
            value.get() + x
        },
        1,
    );
    // These would lie where the value was, if that had gone with the parent's copy.
    let others: Vec<_> = (0..8).map(|_| SharedValue::new(100u64).unwrap()).collect();
    open.set(1);
    assert_eq!(task.result()?, 8);
    let tasks: Vec<_> = (0..20)
        .map(|x| {
            pool.submit(
                |value: SharedValue<u64>| value.get(),
                SharedValue::new(x).unwrap(),
            )
        })
        .collect();
    for (x, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.result()?, x as u64);
    }
    let lazy = pool.imap(
        |value: SharedValue<u64>| value.get(),
        (0..20).map(|x| SharedValue::new(x).unwrap()),
    );
    for (x, value) in lazy.enumerate() {
        assert_eq!(value?, x as u64);
    }
    drop((others, open));
    Ok(())
}

/// A forked child has a copy of a handle that it has never used, and gets another handle of the
/// same object. The copy counts for nothing there, so that its drop takes nothing away.
#[test]
fn a_copy_that_a_forked_child_never_used_goes_without_the_handle_that_came_later() -> Result {
    let _none = Leftovers::none();
    let (dropped, go) = (Event::new()?, Event::new()?);
    let (sender, receiver) = Queue::bounded(1)?.split();
    let value = SharedValue::new(7u64)?;
    sender.send(value.clone())?;
    // SAFETY: the child uses shared objects only, and ends without a return to the harness.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            let reads = std::panic::AssertUnwindSafe(|| {
                let own: SharedValue<u64> = receiver.recv().unwrap();
                drop(value);
                dropped.set();
                assert!(go.wait_timeout(DEADLINE), "not told to go on");
                own.get() as i32
            });
            let code = std::panic::catch_unwind(reads).unwrap_or(1);
            // SAFETY: ends the process at once, and touches nothing of it.
            unsafe { libc::_exit(code) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let has_come = dropped.wait_timeout(DEADLINE);
            // From here on the child alone has the value.
            drop(value);
            let others: Vec<_> = (0..8).map(|_| SharedValue::new(100u64).unwrap()).collect();
            go.set();
            let ended = nix::sys::wait::waitpid(child, None)?;
            assert!(has_come, "the child has not come so far");
            assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 7));
            drop(others);
        }
    }
    Ok(())
}

#[test]
fn an_idle_pool_lets_go_of_what_a_function_took_along() -> Result {
    let _none = Leftovers::none();
    let pool = Pool::processes(1)?;
    let before = shm::usage().objects;
    let value = SharedValue::new(5u64)?;
    let task = pool.submit(closure!([value] |x: u64| value.get() + x), 1);
    assert_eq!(task.result()?, 6);
    drop(value);
    eventually("the worker has been told", || {
        shm::usage().objects == before
    });
    Ok(())
}

#[test]
fn a_sleeping_worker_lets_go_of_what_a_function_took_along() -> Result {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1);
    let pool = builder.wait_policy(WaitPolicy::Park).build()?;
    let before = shm::usage().objects;
    let value = SharedValue::new(5u64)?;
    let function = closure!([value] |x: u64| (value.get() + x, std::process::id()));
    let mut call = pool.imap(function, 1..2);
    let (sum, worker) = call.next().unwrap()?;
    assert_eq!(sum, 6);
    eventually("the worker sleeps", || is_asleep(worker));
    drop(call);
    drop(value);
    eventually("the worker has been told", || {
        shm::usage().objects == before
    });
    Ok(())
}

#[test]
fn results_that_nobody_takes_keep_nothing() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let gone = || eventually("all have gone", || shm::usage().objects == before);
    let boom = |x: u64| {
        assert!(x != 3, "boom");
        SharedValue::new(x).unwrap()
    };
    let pool = Pool::processes(2)?;
    assert!(pool.map(boom, 0..1_000).is_err());
    for _ in 0..10 {
        drop(pool.submit(|x: u64| SharedValue::new(x).unwrap(), 1));
    }
    drop(pool.submit(boom, 3).result());
    drop(pool.imap(boom, 0..100));
    drop(pool.call().map_outcomes(boom, 0..100));
    pool.close()?;
    gone();
    // A child that is killed while it encodes a result keeps what is in it. So the item that fails
    // is the last one of the only child, and the call has nothing left to kill.
    let one = Forked::builder().workers(1).allow_threads(true);
    let pool = one.build()?;
    let items = [0, 1, 2, 4, 5, 6, 7, 8, 9, 3];
    assert_eq!(pool.map(boom, items).unwrap_err().index(), Some(9));
    drop(pool.submit(boom, 1));
    pool.close()?;
    drop(pool);
    gone();
    Ok(())
}

#[test]
fn a_result_whose_drop_panics_is_an_error_and_keeps_nothing() -> Result {
    #[derive(Serialize, Deserialize)]
    struct Loud(SharedValue<u64>, bool);
    impl Drop for Loud {
        fn drop(&mut self) {
            assert!(
                !self.1 || std::thread::panicking(),
                "it does not like to go"
            );
        }
    }
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let pool = Pool::processes(1)?;
    let task = pool.submit(|x: u64| Loud(SharedValue::new(x).unwrap(), true), 1);
    assert!(matches!(task.result(), Err(TaskError::Panicked { .. })));
    eventually("it has gone", || shm::usage().objects == before);
    Ok(())
}

/// Serde tries one form after the other.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Either {
    Number {
        value: SharedValue<u64>,
        rest: u8,
    },
    Text {
        value: SharedValue<u64>,
        rest: String,
    },
}

impl Either {
    fn text(x: u64) -> Self {
        Self::Text {
            value: SharedValue::new(x).unwrap(),
            rest: "text".into(),
        }
    }

    fn get(&self) -> u64 {
        match self {
            Self::Text { value, rest } => value.get() + rest.len() as u64,
            Self::Number { value, rest } => value.get() + u64::from(*rest),
        }
    }
}

#[test]
fn a_message_that_is_read_in_several_tries_keeps_its_objects() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let pool = Pool::processes(1)?;
    assert_eq!(pool.submit(Either::text, 4).result()?.get(), 8);
    assert_eq!(
        pool.submit(|it: Either| it.get(), Either::text(5))
            .result()?,
        9
    );
    let child = Process::spawn(|it: Either| assert_eq!(it.get(), 10), Either::text(6))?;
    assert!(child.join()?.success());
    eventually("all have gone", || shm::usage().objects == before);
    Ok(())
}

/// What is read is not what was written.
struct Mistaken(SharedValue<u32>);

impl Serialize for Mistaken {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Mistaken {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let value = SharedValue::<[u64; 7]>::deserialize(input)?;
        panic!("{value:?} was taken for another type");
    }
}

#[test]
fn a_handle_that_is_taken_for_another_type_is_an_error_and_keeps_nothing() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let pool = Pool::processes(1)?;
    for has_it in [false, true] {
        let value = SharedValue::new(5u32)?;
        if has_it {
            // The worker has the object while it reads the other handle.
            let both = pool.submit(
                |(own, mistaken): (SharedValue<u32>, Mistaken)| own.get() + mistaken.0.get(),
                (value.clone(), Mistaken(value)),
            );
            assert!(matches!(both.result(), Err(TaskError::Decode { .. })));
        } else {
            let task = pool.submit(|it: Mistaken| it.0.get(), Mistaken(value));
            assert!(matches!(task.result(), Err(TaskError::Decode { .. })));
        }
        eventually("it has gone", || shm::usage().objects == before);
    }
    Ok(())
}

#[test]
fn handles_that_are_twice_in_a_message_keep_nothing() -> Result {
    type Pair = (SharedValue<u64>, SharedValue<u64>);
    let twice = |x: u64| -> Pair {
        let value = SharedValue::new(x).unwrap();
        (value.clone(), value)
    };
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let pool = Pool::processes(1)?;
    let (one, other) = pool.submit(twice, 4).result()?;
    one.set(5);
    assert_eq!(other.get(), 5);
    drop((one, other));
    eventually("it has gone", || shm::usage().objects == before);
    let queue = Queue::bounded(1)?;
    let with_queue = shm::usage().objects;
    queue.push(twice(6))?;
    let (one, other) = queue.pop()?;
    one.set(7);
    assert_eq!(other.get(), 7);
    drop((one, other));
    eventually("it has gone", || shm::usage().objects == with_queue);
    Ok(())
}

#[test]
fn a_process_that_does_not_see_the_others_takes_nobody_for_dead() -> Result {
    let _none = Leftovers::none();
    let value = SharedValue::new(1u64)?;
    let child = Process::spawn(
        |value: SharedValue<u64>| {
            let empty = std::env::temp_dir().join(format!("manyhands-{}", std::process::id()));
            std::fs::create_dir(&empty).unwrap();
            // Without /proc. Only root may do this; no other user gets into that state.
            let entered = std::os::unix::fs::chroot(&empty);
            if entered.is_err() {
                std::fs::remove_dir(&empty).unwrap();
            }
            // Reclaims what dead processes held.
            shm::usage();
            value.set(2);
        },
        value.clone(),
    )?;
    let pid = child.pid();
    assert!(child.join()?.success());
    let _ = std::fs::remove_dir(std::env::temp_dir().join(format!("manyhands-{pid}")));
    let others: Vec<_> = (0..4).map(|_| SharedValue::new(3u64).unwrap()).collect();
    assert_eq!(value.get(), 2);
    drop(others);
    Ok(())
}

#[test]
fn b78_a_limit_on_files_is_an_error_and_kills_nobody() {
    const NAME: &str = "b78_a_limit_on_files_is_an_error_and_kills_nobody";
    if is_program() {
        // A pool works under the limit.
        let pool = Pool::processes(1).unwrap();
        assert_eq!(pool.submit(|x: u64| x + 1, 1).result(), Ok(2));
        let mut made = Vec::new();
        let error = loop {
            match SharedValue::new([0u64; 1_024]) {
                Ok(value) => made.push(value),
                Err(error) => break error,
            }
            assert!(made.len() < 100_000, "the limit was reached long ago");
        };
        println!("error: {error}");
        return;
    }
    let _none = Leftovers::none();
    for kib in ["307200", "102400", "2048"] {
        let own = as_program(NAME);
        let mut limited = Command::new("bash");
        limited
            .args(["-c", &format!("ulimit -f {kib}; exec \"$0\" \"$@\"")])
            .arg(own.get_program())
            .args(own.get_args())
            .envs(
                own.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        let output = finish(&mut limited);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{kib}: {output:?}");
        assert!(text.contains("error: "), "{kib}: {text}");
    }
}

/// Fails, or panics, when the handle in it has been written.
struct Breaks {
    value: SharedValue<u64>,
    panics: bool,
}

impl Breaks {
    fn new(panics: bool) -> Self {
        let value = SharedValue::new(1).unwrap();
        Self { value, panics }
    }
}

impl Serialize for Breaks {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.value.serialize(serializer)?;
        assert!(!self.panics, "half-way");
        Err(serde::ser::Error::custom("half-way"))
    }
}

impl<'de> Deserialize<'de> for Breaks {
    fn deserialize<D: Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
        Err(serde::de::Error::custom("it was never sent"))
    }
}

#[test]
fn a_message_that_is_given_up_half_way_keeps_nothing() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let gone = || eventually("all have gone", || shm::usage().objects == before);
    for panics in [false, true] {
        let queue = Queue::bounded(1)?;
        let push = || queue.push(Breaks::new(panics)).is_err();
        let pushed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(push));
        assert!(pushed.unwrap_or(true));
        drop(queue);
        gone();
        let pool = Pool::processes(1)?;
        assert!(pool.submit(Breaks::new, panics).result().is_err());
        let sent = || pool.submit(|_: Breaks| (), Breaks::new(panics)).result();
        let sent = std::panic::catch_unwind(std::panic::AssertUnwindSafe(sent));
        assert!(sent.map_or(true, |result| result.is_err()));
        pool.close()?;
        gone();
        let forked = forked();
        assert!(forked.submit(Breaks::new, panics).result().is_err());
        forked.close()?;
        drop(forked);
        gone();
    }
    Ok(())
}

/// Sends one value by a queue while a message with two others is written, and receives it while
/// that is read.
struct Around {
    first: SharedValue<u64>,
    queue: Queue<SharedValue<u64>>,
    inner: SharedValue<u64>,
    last: SharedValue<u64>,
}

struct Pushes<'a>(&'a Around);

impl Serialize for Pushes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let pushed = self.0.queue.push(self.0.inner.clone());
        pushed.map_err(serde::ser::Error::custom)?;
        self.0.queue.serialize(serializer)
    }
}

struct Pops(Queue<SharedValue<u64>>, SharedValue<u64>);

impl<'de> Deserialize<'de> for Pops {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let queue = Queue::deserialize(input)?;
        let value = queue.pop().map_err(serde::de::Error::custom)?;
        Ok(Self(queue, value))
    }
}

impl Serialize for Around {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (&self.first, Pushes(self), &self.last).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Around {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let (first, Pops(queue, inner), last) = Deserialize::deserialize(input)?;
        Ok(Self {
            first,
            queue,
            inner,
            last,
        })
    }
}

#[test]
fn a_message_that_is_sent_while_another_one_is_written_leaves_that_whole() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let outer = Queue::bounded(1)?;
    outer.push(Around {
        first: SharedValue::new(1)?,
        queue: Queue::bounded(1)?,
        inner: SharedValue::new(2)?,
        last: SharedValue::new(3)?,
    })?;
    // These would lie where the values were, if those had gone with the handles here.
    let others: Vec<_> = (0..8).map(|_| SharedValue::new(100u64).unwrap()).collect();
    let around = outer.pop()?;
    let seen = [&around.first, &around.inner, &around.last].map(SharedValue::get);
    assert_eq!(seen, [1, 2, 3]);
    drop((around, outer, others));
    eventually("all have gone", || shm::usage().objects == before);
    Ok(())
}

#[test]
fn a_handle_that_comes_back_from_another_process_is_of_the_same_object() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let (one, other) = (
        SharedValue::new(1_u64).unwrap(),
        SharedValue::new(1_u64).unwrap(),
    );
    let echo = |value: SharedValue<u64>| value;
    let back = pool.submit(echo, one.clone()).result().unwrap();
    assert!(back.same_object(&one) && !back.same_object(&other));
    let queue = Queue::<u32>::bounded(1).unwrap();
    let (sender, receiver) = queue.clone().split();
    let echo = |sender: manyhands::queue::Sender<u32>| sender;
    let back = pool.submit(echo, sender.clone()).result().unwrap();
    assert!(back.same_object(&queue.sender()) && back.same_object(&sender));
    assert!(receiver.same_object(&queue.receiver()));
}
