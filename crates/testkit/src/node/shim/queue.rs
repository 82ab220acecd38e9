//! The one event queue of a shim process.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Events that a shim keeps while nobody takes them; newer ones are dropped.
pub const QUEUE_CAPACITY: usize = 128;

/// A bounded queue whose takers compete: each event goes to one of them.
#[derive(Debug)]
pub(super) struct Queue<T> {
    events: Mutex<VecDeque<T>>,
    filled: Notify,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { events: Mutex::new(VecDeque::new()), filled: Notify::new() }
    }

    /// Adds an event; false if the queue was full and the event is lost.
    pub(super) fn push(&self, event: T) -> bool {
        let mut events = self.lock();
        if events.len() == QUEUE_CAPACITY {
            return false;
        }
        events.push_back(event);
        drop(events);
        self.filled.notify_one();
        true
    }

    /// Takes the oldest event, waiting for one. Dropping the future takes
    /// none.
    pub(super) async fn pop(&self) -> T {
        loop {
            if let Some(event) = self.try_pop() {
                return event;
            }
            self.filled.notified().await;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn try_pop(&self) -> Option<T> {
        let mut events = self.lock();
        let event = events.pop_front();
        // One wake-up may stand for several events.
        if !events.is_empty() {
            self.filled.notify_one();
        }
        event
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_events_are_dropped_and_the_oldest_come_first() {
        let queue = Queue::new();
        for event in 0..QUEUE_CAPACITY {
            assert!(queue.push(event));
        }
        assert!(!queue.push(999));
        for event in 0..QUEUE_CAPACITY {
            assert_eq!(queue.pop().await, event);
        }
        assert_eq!(queue.len(), 0);
    }
}
