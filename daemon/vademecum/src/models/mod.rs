//! Model files: which ones are known, which of them fit this machine, and how they get here.
//!
//! | module | one job |
//! |---|---|
//! | [`catalogue`] | the known models, from data |
//! | [`room`] | whether a model fits the memory |
//! | [`web`] | one HTTP request, with redirects, proxies and a place to go on from |
//! | [`source`] | the hub, a mirror or a folder |
//! | [`pull`] | one file or model into a folder: resumed, checked, renamed when whole |

pub mod catalogue;
pub mod pull;
pub mod room;
pub mod source;
pub mod web;

pub use catalogue::{Catalogue, CatalogueError, Kind, Model};
pub use pull::{Checked, Outcome, PullError, Pulled, Puller};
pub use source::Source;
