//! The Controller service: volumes are made, attached, listed, grown and removed, on the data folder alone.
mod create;
mod delete;
mod expand;
mod list;
mod publish;
mod service;
mod unpublish;
mod validate;

pub use service::ControllerService;
