//! What a scraper gets.

mod common;
mod negotiation;
mod prometheus;
mod series;
