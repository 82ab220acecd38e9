//! The zeropod node daemon.
