//! The Node service: staged, published and undone by what the kernel shows, never by memory.
mod expand;
mod format;
mod health;
mod mounted;
mod publish;
mod revoke;
mod service;
mod site;
mod stage;
mod staging;
mod stats;
#[cfg(test)]
mod sweep;
mod tag;
mod unpublish;
mod unstage;

pub use service::NodeService;
