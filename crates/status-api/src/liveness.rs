//! Whether the loops of the process still turn.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// Knows the futures that have to run until shutdown, and which of them are
/// stuck or gone. Clones share it.
///
/// A future is stuck when one poll of it takes longer than `limit`: it then
/// blocks in a system call or a lock, or spins, and holds up its thread. A loop
/// that waits for something that never comes is seen by its heartbeat, if it
/// has one.
#[derive(Debug, Clone)]
pub struct Liveness {
    limit: Duration,
    /// Of which the loops' times are counted.
    epoch: Instant,
    loops: Arc<Mutex<Vec<Arc<Loop>>>>,
    hearts: Arc<Mutex<Vec<Heart>>>,
}

/// Name of a loop, and when it turned last.
type Heart = (&'static str, watch::Receiver<Instant>);

#[derive(Debug)]
struct Loop {
    name: &'static str,
    /// `WAITING`, `ENDED`, or the start of the poll that is going on, in
    /// milliseconds after the epoch.
    state: AtomicU64,
}

const WAITING: u64 = u64::MAX;
const ENDED: u64 = u64::MAX - 1;

impl Liveness {
    /// Knows no loops yet.
    pub fn new(limit: Duration) -> Self {
        Self { limit, epoch: Instant::now(), loops: Arc::default(), hearts: Arc::default() }
    }

    /// Watches a future that has to run until shutdown.
    pub fn watch<F: Future>(
        &self,
        name: &'static str,
        future: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let epoch = self.epoch;
        let state = Arc::new(Loop { name, state: AtomicU64::new(WAITING) });
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&state));
        // Set also when the future is dropped, or panics.
        let ended = SetEnded(Arc::clone(&state));
        async move {
            let _ended = ended;
            let mut future = pin!(future);
            poll_fn(|context| {
                state.state.store(millis(epoch.elapsed()), Ordering::Relaxed);
                let polled = future.as_mut().poll(context);
                state.state.store(WAITING, Ordering::Relaxed);
                polled
            })
            .await
        }
    }

    /// Watches a loop that tells when it turned last, more often than `limit`.
    pub fn listen(&self, name: &'static str, heart: watch::Receiver<Instant>) {
        self.hearts.lock().unwrap_or_else(PoisonError::into_inner).push((name, heart));
    }

    /// What is wrong, one line a loop; empty when all is well.
    pub fn stuck(&self) -> Vec<String> {
        let now = millis(self.epoch.elapsed());
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let hearts = self.hearts.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = hearts.iter().filter_map(|(name, heart)| {
            let since = heart.borrow().elapsed();
            (since > self.limit).then(|| format!("{name} has not turned for {} s", since.as_secs()))
        });
        loops
            .iter()
            .filter_map(|watched| match watched.state.load(Ordering::Relaxed) {
                WAITING => None,
                ENDED => Some(format!("{} ended", watched.name)),
                since => {
                    let stuck = Duration::from_millis(now.saturating_sub(since));
                    (stuck > self.limit)
                        .then(|| format!("{} is stuck for {} s", watched.name, stuck.as_secs()))
                }
            })
            .chain(silent)
            .collect()
    }
}

struct SetEnded(Arc<Loop>);

impl Drop for SetEnded {
    fn drop(&mut self) {
        self.0.state.store(ENDED, Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX / 2)
}
