//! Assembles OCI images from files, without a container engine and without
//! running anything of what is in them: a [`tree`] of files becomes a layer, an
//! [`image`] its manifest, a [`layout`] what is written to disk or pushed to a
//! [`registry`]. The same files give the same digests.
//!
//! [`recipe`] says what is in zeropod's images, and [`run`] makes them.

pub mod arch;
pub mod debian;
mod error;
pub mod image;
pub mod layout;
pub mod oci;
pub mod programs;
pub mod recipe;
pub mod registry;
pub mod run;
pub mod sbom;
pub mod source;
pub mod tree;
pub mod unpack;

pub use error::Error;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
