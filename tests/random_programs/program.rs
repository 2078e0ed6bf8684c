//! A random program as a value: its pools, and the steps that each of its threads makes.

use std::time::Duration;

use manyhands::{Call, Executor, Retry, RetryOn};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// The number of slots for handles, which all threads share.
pub(crate) const SLOTS: usize = 6;

/// A limit up to this may end a task that is short, because the machine is busy. A longer one does
/// not.
const SMALL: u64 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) pools: Vec<PoolSpec>,
    pub(crate) threads: Vec<Vec<Step>>,
    /// Whether the steps are made that kill and stop workers from outside. Without them the model
    /// is exact.
    pub(crate) from_outside: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Engine {
    Serial,
    Threads,
    Processes,
    Forked,
}

impl Engine {
    /// Whether a task can end its worker and leave the program alive.
    pub(crate) fn is_mortal(self) -> bool {
        matches!(self, Self::Processes | Self::Forked)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolSpec {
    pub(crate) engine: Engine,
    pub(crate) workers: usize,
    /// The next three are for worker processes.
    pub(crate) max_tasks: Option<u32>,
    pub(crate) idle_timeout: Option<u64>,
    pub(crate) parks: bool,
    /// How the program ends the pool when its threads have ended.
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Close,
    /// Close, and give the tasks this many milliseconds.
    CloseIn(u64),
    CancelQueued,
    Kill,
    Drop,
}

/// How a task ends its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Abort,
    Exit,
    Kill,
    Segv,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Live,
    /// Takes this many milliseconds.
    Slow(u8),
    /// Argument and result are larger than a lane.
    Large,
    Panic,
    Die(Way),
    /// The worker dies while it decodes the argument.
    DieInArgument,
    /// The worker dies while it encodes the result.
    DieInResult,
    /// The argument cannot be decoded.
    BadArgument,
    /// The argument cannot be encoded.
    StuckArgument,
    BadResult,
    StuckResult,
    /// Never ends.
    Hang,
    /// Stops its own process.
    Freeze,
    /// Ends when it is told to stop.
    UntilTold,
    /// Makes a call itself: on a pool of the program, or in a worker process on a pool of its own.
    Nested(u8),
}

impl Kind {
    /// What is left of it on this engine, with these options. `returns` tells whether the call
    /// encodes the task's answer.
    pub(crate) fn on(self, engine: Engine, options: Options, returns: bool) -> Self {
        match self {
            Self::Hang | Self::Freeze => match options.most() {
                Some(most @ 1..=SMALL) if !engine.is_mortal() => {
                    // A thread cannot be stopped.
                    Self::Slow(most as u8 + 20)
                }
                Some(1..=SMALL) => self,
                _ => Self::Live,
            },
            Self::UntilTold if !options.tells_soon() => Self::Live,
            Self::Die(_) if !engine.is_mortal() => Self::Panic,
            Self::DieInArgument | Self::BadArgument | Self::StuckArgument
                if engine != Engine::Processes =>
            {
                Self::Live
            }
            Self::DieInResult | Self::BadResult | Self::StuckResult
                if !engine.is_mortal() || !returns =>
            {
                Self::Live
            }
            // Other threads of the program may have locks that a call in a forked child needs.
            Self::Nested(_) if engine == Engine::Forked => Self::Live,
            other => other,
        }
    }

    /// Whether the task's function is entered, and so notes its start.
    pub(crate) fn starts(self) -> bool {
        !matches!(
            self,
            Self::DieInArgument | Self::BadArgument | Self::StuckArgument
        )
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    /// Milliseconds.
    pub(crate) limit: Option<u64>,
    pub(crate) retries: u32,
    /// The retries are a policy: they follow panics and limits too, and not only deaths.
    #[serde(default)]
    pub(crate) policy: bool,
    /// The grace period, in milliseconds.
    #[serde(default)]
    pub(crate) grace: Option<u64>,
}

impl Options {
    pub(crate) fn limit(self) -> Option<Duration> {
        self.limit.map(Duration::from_millis)
    }

    /// The milliseconds after which a task is ended. One with a limit of zero has no grace period:
    /// it does not begin.
    pub(crate) fn most(self) -> Option<u64> {
        let grace = self.grace.unwrap_or(0);
        self.limit.map(|limit| match limit {
            0 => 0,
            limit => limit + grace,
        })
    }

    /// Whether the limit may end a task that takes next to no time.
    pub(crate) fn is_tight(self) -> bool {
        self.most().is_some_and(|most| most <= SMALL)
    }

    /// Whether a task may be told to stop, and soon, if it runs for long enough.
    pub(crate) fn tells_soon(self) -> bool {
        self.grace.is_some() && matches!(self.limit, Some(1..=SMALL))
    }

    /// The policy, if there is one.
    pub(crate) fn retry(self) -> Option<Retry> {
        let causes = RetryOn::DEATH | RetryOn::PANIC | RetryOn::TIMEOUT;
        self.policy.then(|| Retry::up_to(self.retries).on(causes))
    }

    /// Gives a call its limit and its grace period.
    pub(crate) fn bound<'p, 'c, E: Executor, M>(
        self,
        mut call: Call<'p, 'c, E, M>,
    ) -> Call<'p, 'c, E, M> {
        if let Some(limit) = self.limit() {
            call = call.timeout(limit);
        }
        if let Some(grace) = self.grace {
            call = call.grace_period(Duration::from_millis(grace));
        }
        call
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Form {
    Map,
    MapWith,
    TryMap,
    ForEach,
    MapReduce,
    Imap,
    ImapUnordered,
}

impl Form {
    /// Whether there is such a call with a policy.
    pub(crate) fn takes_policy(self) -> bool {
        !matches!(self, Self::MapWith | Self::MapReduce)
    }

    /// Whether it submits its items one by one.
    pub(crate) fn is_lazy(self) -> bool {
        matches!(self, Self::Imap | Self::ImapUnordered)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Chunks {
    Unsaid,
    Equal,
    Size(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallSpec {
    pub(crate) pool: usize,
    pub(crate) form: Form,
    pub(crate) tasks: Vec<Kind>,
    /// This many more that live.
    pub(crate) more: usize,
    pub(crate) options: Options,
    pub(crate) chunks: Chunks,
    pub(crate) window: Option<usize>,
    pub(crate) tells: bool,
    /// The input panics instead of giving this item.
    pub(crate) input_panics: Option<usize>,
    /// A lazy call is dropped after this many outcomes.
    pub(crate) take: Option<usize>,
}

/// What a callback does when it has noted the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Callback {
    Note,
    Slow,
    Panic,
    /// Gives a pool a task and waits for it.
    Submit {
        pool: usize,
    },
    Close {
        pool: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    Result,
    Timeouts,
    Polls,
    Await,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum When {
    All,
    FirstCompleted,
    FirstError,
    AsCompleted,
}

/// Pools are named by a number modulo how many there are. A step on an empty slot, or on a pool
/// that was dropped, does nothing: so every part of a program is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Submit {
        pool: usize,
        slot: usize,
        kind: Kind,
        options: Options,
    },
    Result {
        slot: usize,
        how: How,
    },
    Cancel {
        slot: usize,
    },
    Kill {
        slot: usize,
    },
    /// Drops the handle, if `polled` after it has been polled once. If `kills`, that kills the
    /// task.
    Leave {
        slot: usize,
        polled: bool,
        #[serde(default)]
        kills: bool,
    },
    OnDone {
        slot: usize,
        callback: Callback,
    },
    Wait {
        slots: Vec<usize>,
        when: When,
    },
    Call(CallSpec),
    Resize {
        pool: usize,
        workers: usize,
    },
    End {
        pool: usize,
        how: End,
    },
    KillWorker {
        pool: usize,
        which: usize,
    },
    StopWorker {
        pool: usize,
        which: usize,
        millis: u64,
    },
}

fn pool() -> impl Strategy<Value = usize> + Clone {
    0..3usize
}

fn slot() -> impl Strategy<Value = usize> + Clone {
    0..SLOTS
}

fn end() -> impl Strategy<Value = End> + Clone {
    prop_oneof![
        3 => Just(End::Close),
        1 => (0..30u64).prop_map(End::CloseIn),
        2 => Just(End::Drop),
        1 => Just(End::CancelQueued),
        1 => Just(End::Kill),
    ]
}

fn pool_spec() -> impl Strategy<Value = PoolSpec> {
    let engine = prop_oneof![
        1 => Just(Engine::Serial),
        4 => Just(Engine::Threads),
        5 => Just(Engine::Processes),
        3 => Just(Engine::Forked),
    ];
    let idle = prop::option::weighted(0.2, 0..4u64);
    (
        engine,
        1..4usize,
        prop::option::weighted(0.25, 1..5u32),
        idle,
        any::<bool>(),
        end(),
    )
        .prop_map(
            |(engine, workers, max_tasks, idle_timeout, parks, end)| PoolSpec {
                engine,
                workers,
                max_tasks,
                idle_timeout,
                parks,
                end,
            },
        )
}

fn kind() -> impl Strategy<Value = Kind> + Clone {
    let way = prop_oneof![
        Just(Way::Kill),
        Just(Way::Exit),
        Just(Way::Abort),
        Just(Way::Segv)
    ];
    prop_oneof![
        20 => Just(Kind::Live),
        6 => (1..40u8).prop_map(Kind::Slow),
        1 => Just(Kind::Large),
        2 => Just(Kind::Panic),
        3 => way.prop_map(Kind::Die),
        1 => Just(Kind::DieInArgument),
        1 => Just(Kind::DieInResult),
        1 => Just(Kind::BadArgument),
        1 => Just(Kind::StuckArgument),
        1 => Just(Kind::BadResult),
        1 => Just(Kind::StuckResult),
        2 => Just(Kind::Hang),
        1 => Just(Kind::Freeze),
        3 => Just(Kind::UntilTold),
        2 => (0..16u8).prop_map(Kind::Nested),
    ]
}

fn options() -> impl Strategy<Value = Options> + Clone {
    let limit = prop_oneof![
        10 => Just(None),
        1 => Just(Some(0)),
        4 => (10..50u64).prop_map(Some),
        2 => Just(Some(30_000)),
    ];
    let retries = prop_oneof![5 => Just(0), 1 => 1..3u32];
    let again = prop_oneof![
        2 => (retries, Just(false)),
        1 => (0..3u32, Just(true)),
    ];
    let grace = prop_oneof![
        9 => Just(None),
        2 => (0..50u64).prop_map(Some),
        1 => Just(Some(30_000)),
    ];
    (limit, again, grace).prop_map(|(limit, (retries, policy), grace)| Options {
        limit,
        retries,
        policy,
        grace,
    })
}

fn call() -> impl Strategy<Value = CallSpec> {
    let form = prop_oneof![
        3 => Just(Form::Map),
        1 => Just(Form::MapWith),
        2 => Just(Form::TryMap),
        1 => Just(Form::ForEach),
        1 => Just(Form::MapReduce),
        2 => Just(Form::Imap),
        2 => Just(Form::ImapUnordered),
    ];
    let chunks = prop_oneof![
        3 => Just(Chunks::Unsaid),
        1 => Just(Chunks::Equal),
        3 => (1..6usize).prop_map(Chunks::Size),
    ];
    // Half of the calls have nothing in them that fails.
    let tasks = prop_oneof![
        prop::collection::vec(Just(Kind::Live), 0..12),
        prop::collection::vec(kind(), 0..12),
    ];
    let more = prop_oneof![4 => Just(0), 1 => 0..200usize];
    let window = prop::option::weighted(0.25, 1..8usize);
    let take = prop::option::weighted(0.25, 0..6usize);
    let input = prop::option::weighted(0.08, 0..8usize);
    let what = (pool(), form, tasks, more, options());
    let rest = (chunks, window, any::<bool>(), input, take);
    (what, rest).prop_map(
        |((pool, form, tasks, more, options), (chunks, window, tells, input_panics, take))| {
            CallSpec {
                pool,
                form,
                tasks,
                more,
                options,
                chunks,
                window,
                tells,
                input_panics,
                take,
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let callback = prop_oneof![
        4 => Just(Callback::Note),
        1 => Just(Callback::Slow),
        1 => Just(Callback::Panic),
        2 => pool().prop_map(|pool| Callback::Submit { pool }),
        1 => pool().prop_map(|pool| Callback::Close { pool }),
    ];
    let how = prop_oneof![
        4 => Just(How::Result),
        1 => Just(How::Timeouts),
        1 => Just(How::Polls),
        1 => Just(How::Await),
    ];
    let when = prop_oneof![
        2 => Just(When::All),
        2 => Just(When::FirstCompleted),
        1 => Just(When::FirstError),
        2 => Just(When::AsCompleted),
    ];
    let submit = (pool(), slot(), kind(), options());
    let stop = (pool(), 0..3usize, 1..60u64);
    prop_oneof![
        20 => submit.prop_map(|(pool, slot, kind, options)| Step::Submit { pool, slot, kind, options }),
        6 => (slot(), how).prop_map(|(slot, how)| Step::Result { slot, how }),
        3 => slot().prop_map(|slot| Step::Cancel { slot }),
        2 => slot().prop_map(|slot| Step::Kill { slot }),
        2 => (slot(), any::<bool>(), any::<bool>()).prop_map(|(slot, polled, kills)| Step::Leave { slot, polled, kills }),
        6 => (slot(), callback).prop_map(|(slot, callback)| Step::OnDone { slot, callback }),
        4 => (prop::collection::vec(slot(), 1..5), when).prop_map(|(slots, when)| Step::Wait { slots, when }),
        14 => call().prop_map(Step::Call),
        2 => (pool(), 1..4usize).prop_map(|(pool, workers)| Step::Resize { pool, workers }),
        2 => (pool(), end()).prop_map(|(pool, how)| Step::End { pool, how }),
        2 => (pool(), 0..3usize).prop_map(|(pool, which)| Step::KillWorker { pool, which }),
        2 => stop.prop_map(|(pool, which, millis)| Step::StopWorker { pool, which, millis }),
    ]
}

/// Any program.
pub(crate) fn program() -> impl Strategy<Value = Program> {
    let threads = prop::collection::vec(prop::collection::vec(step(), 0..10), 1..4);
    let pools = prop::collection::vec(pool_spec(), 1..4);
    (pools, threads, prop::bool::weighted(0.2)).prop_map(|(pools, threads, from_outside)| Program {
        pools,
        threads,
        from_outside,
    })
}
