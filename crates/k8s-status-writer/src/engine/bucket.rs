//! How many requests may go, and when the next one.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// A token bucket that holds one second's worth.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    tokens: f64,
    counted: Instant,
    /// Nothing goes before, because the server said so.
    closed_until: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        let rate = f64::from(per_second.get());
        Self { rate, tokens: rate, counted: now, closed_until: None }
    }

    /// When the next request may go: now or later.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        self.next_above(0.0, now)
    }

    /// When the next Event may go. Half a second's worth is left for pods:
    /// after a burst there are many Events, and labels must not wait for them.
    pub(super) fn next_event(&mut self, now: Instant) -> Instant {
        self.next_above(self.rate / 2.0, now)
    }

    fn next_above(&mut self, reserve: f64, now: Instant) -> Instant {
        self.refill(now);
        let missing = (1.0 + reserve.min(self.rate - 1.0) - self.tokens).max(0.0);
        let at = now + Duration::from_secs_f64(missing / self.rate);
        self.closed_until.map_or(at, |until| at.max(until))
    }

    /// Counts a request.
    pub(super) fn take(&mut self, now: Instant) {
        self.refill(now);
        self.tokens -= 1.0;
    }

    /// Holds everything back for a while.
    pub(super) fn close(&mut self, until: Instant) {
        self.closed_until = self.closed_until.max(Some(until));
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.tokens = passed.mul_add(self.rate, self.tokens).min(self.rate);
        self.counted = now;
        if self.closed_until.is_some_and(|until| until <= now) {
            self.closed_until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(NonZeroU32::new(150).unwrap(), start);
        for _ in 0..150 {
            assert_eq!(bucket.next(start), start);
            bucket.take(start);
        }
        let next = bucket.next(start);
        assert!(next > start && next <= start + Duration::from_millis(7));
        // A second later everything is there again, but no more.
        let later = start + Duration::from_secs(100);
        for _ in 0..150 {
            assert_eq!(bucket.next(later), later);
            bucket.take(later);
        }
        assert!(bucket.next(later) > later);
    }

    #[test]
    fn events_leave_half_for_pods() {
        let start = Instant::now();
        let mut bucket = Bucket::new(NonZeroU32::new(150).unwrap(), start);
        let mut events = 0;
        while bucket.next_event(start) == start {
            bucket.take(start);
            events += 1;
        }
        assert_eq!((events, bucket.next(start)), (75, start));
        // With one request per second, Events still go.
        let mut slow = Bucket::new(NonZeroU32::MIN, start);
        assert_eq!(slow.next_event(start), start);
    }

    #[test]
    fn closed_until_the_server_allows() {
        let start = Instant::now();
        let mut bucket = Bucket::new(NonZeroU32::new(150).unwrap(), start);
        let until = start + Duration::from_secs(3);
        bucket.close(until);
        bucket.close(start + Duration::from_secs(1));
        assert_eq!(bucket.next(start), until);
        assert_eq!(bucket.next(until), until);
    }
}
