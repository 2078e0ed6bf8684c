//! What the tests of handles have: runtimes to await on, and an ear for callbacks.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::*;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest of all runtimes.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Awaits all at once.
pub(crate) async fn all<R>(tasks: Vec<TaskFuture<R>>) -> Vec<Result<R, TaskError>> {
    let mut tasks: Vec<Option<TaskFuture<R>>> = tasks.into_iter().map(Some).collect();
    let mut outcomes: Vec<_> = tasks.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (task, outcome) in tasks.iter_mut().zip(&mut outcomes) {
            if let Some(pending) = task
                && let Poll::Ready(ended) = Pin::new(pending).poll(context)
            {
                *outcome = Some(ended);
                *task = None;
            }
        }
        if tasks.iter().all(Option::is_none) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    outcomes.into_iter().flatten().collect()
}

pub(crate) fn tokio() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap()
}

/// Hears what callbacks are told.
pub(crate) struct Ear<R> {
    send: std::sync::mpsc::Sender<(&'static str, Result<R, TaskError>)>,
    heard: std::sync::mpsc::Receiver<(&'static str, Result<R, TaskError>)>,
}

impl<R: Clone + Send + 'static> Ear<R> {
    pub(crate) fn new() -> Self {
        let (send, heard) = std::sync::mpsc::channel();
        Self { send, heard }
    }

    /// A callback of this name.
    pub(crate) fn listen(
        &self,
        name: &'static str,
    ) -> impl FnOnce(Result<&R, &TaskError>) + Send + use<R> {
        let send = self.send.clone();
        move |outcome| {
            // The test may have failed and gone.
            let _ = send.send((name, outcome.cloned().map_err(Clone::clone)));
        }
    }

    /// What has been heard so far.
    pub(crate) fn heard(&self) -> Vec<(&'static str, Result<R, TaskError>)> {
        self.heard.try_iter().collect()
    }
}
