//! How the operations of the whole node went. Unlike the series of containers
//! these do not end.

use metrics::{Counter, Key, KeyName, Label, Level, Metadata, Recorder as _, Unit};

use crate::{container::News, recorder::Recorder};

const CHECKPOINTS: &str = "zeropod_checkpoints_total";
const RESTORES: &str = "zeropod_restores_total";

pub(crate) struct Outcomes {
    checkpoints: Counter,
    failed_checkpoints: Counter,
    restores: Counter,
    failed_restores: Counter,
}

impl std::fmt::Debug for Outcomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcomes").finish_non_exhaustive()
    }
}

impl Outcomes {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        let describe = |name, help: &'static str| {
            recorder.describe_counter(
                KeyName::from_const_str(name),
                Some(Unit::Count),
                help.into(),
            );
        };
        describe(
            CHECKPOINTS,
            "Checkpoints of all containers of the node since the start, by outcome: success or \
             failure.",
        );
        describe(
            RESTORES,
            "Restores of all containers of the node since the start, by outcome: success or \
             failure. A fresh start after a failure counts as both.",
        );
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let counter = |name, outcome| {
            let labels = vec![Label::from_static_parts("outcome", outcome)];
            recorder.register_counter(&Key::from_parts(name, labels), &metadata)
        };
        Self {
            checkpoints: counter(CHECKPOINTS, "success"),
            failed_checkpoints: counter(CHECKPOINTS, "failure"),
            restores: counter(RESTORES, "success"),
            failed_restores: counter(RESTORES, "failure"),
        }
    }

    pub(crate) fn count(&self, news: &News) {
        self.checkpoints.increment(news.checkpoints);
        self.failed_checkpoints.increment(news.failed_checkpoints);
        self.restores.increment(news.restores);
        self.failed_restores.increment(news.failed_restores);
    }
}
