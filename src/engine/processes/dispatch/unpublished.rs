//! What the workers have done of a call and not published yet: the parent reads it from their
//! progress words, for callers that are told of the progress.

use super::Dispatch;

impl Dispatch {
    /// Returns how many items of the call with this [address](super::super::task::Results::call)
    /// have ended and are not published, and how many parts of items that run have ended. Workers
    /// may write wrong numbers, so no more than progress may depend on it.
    pub(in crate::engine::processes) fn unpublished(&self, call: *const ()) -> (usize, usize) {
        let (mut items, mut parts) = (0, 0_usize);
        for worker in self.workers.iter().flatten() {
            let header = worker.receiver.header();
            let progress = header.progress();
            let entry = worker.in_flight.iter().find(|entry| {
                entry.expected.task == progress.task && entry.batch.task.results.call() == call
            });
            let Some(entry) = entry else { continue };
            let ended = (progress.step / 2).min(entry.expected.end);
            items += ended.saturating_sub(entry.expected.next) as usize;
            if progress.running().is_some() {
                parts = parts.saturating_add(header.within(progress) as usize);
            }
        }
        (items, parts)
    }
}
