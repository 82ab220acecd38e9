//! What the programs say, when they are built to say something.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, Weak},
    thread,
};

use aya_log::EbpfLogger;
use log::{Log as Sink, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::info;

use crate::{Error, bpf};

/// How often it is looked whether anybody wants the lines still, in
/// milliseconds.
const PATIENCE: u16 = 200;

/// Hands the lines of the programs on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Log {
    _wanted: Arc<()>,
}

impl Log {
    /// The log that a program writes to, with all others on the same maps.
    pub(crate) fn of(program: BorrowedFd<'_>) -> Result<Self, Error> {
        let id = bpf::program_info(program).map_err(Error::Log)?.id;
        let failed = |error| Error::Log(io::Error::other(error));
        let logger = EbpfLogger::init_from_id_with_logger(id, ToTracing).map_err(failed)?;
        let wanted = Arc::new(());
        let still_wanted = Arc::downgrade(&wanted);
        thread::Builder::new()
            .name("redirector log".to_owned())
            .spawn(move || forward(logger, &still_wanted))
            .map_err(Error::Log)?;
        Ok(Self { _wanted: wanted })
    }
}

fn forward(mut logger: EbpfLogger<ToTracing>, wanted: &Weak<()>) {
    while wanted.strong_count() > 0 {
        // Whatever it says: the lines are there or not.
        let _result = poll(
            &mut [PollFd::new(logger.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(PATIENCE),
        );
        logger.flush();
    }
}

struct ToTracing;

impl Sink for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        info!(target: "redirector", "{}", record.args());
    }

    fn flush(&self) {}
}
