//! The Controller service: volumes are made, attached, listed, grown and removed, on the data folder alone.
mod capacity;
mod clone;
mod condition;
mod create;
mod delete;
mod expand;
mod get;
mod list;
mod modify;
mod publish;
mod service;
mod shown;
mod unpublish;
mod validate;

pub use service::ControllerService;
