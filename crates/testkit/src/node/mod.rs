//! Sandboxes, containers, the stand-in shim and its activator.

pub mod activator;
pub mod attach;
pub mod container;
mod error;
mod isolated;
pub mod netns;
pub mod real_shim;
pub mod sandbox;
pub mod shim;
pub mod stand_in;

pub use error::Error;
pub use isolated::isolated;

use crate::chain;
