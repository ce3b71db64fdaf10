//! The Node service: staged, published and undone by what the kernel shows, never by memory.
mod expand;
mod mounted;
mod publish;
mod service;
mod stage;
mod stats;
mod unpublish;
mod unstage;

pub use service::NodeService;
