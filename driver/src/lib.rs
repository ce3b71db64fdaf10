//! The Holdfast driver: a volume is a sparse image file in a shared folder, made available on a node as a loop device,
//! formatted and mounted. Modules in reading order: a call enters by `server`, is checked by `request`, runs under
//! `guard`, changes `volume`s, and on a node the `kernel`.

pub mod server;

pub mod controller;
pub mod identity;
pub mod node;
pub mod registration;

pub mod health;
pub mod inspect;
pub mod recover;

pub mod guard;
pub mod request;
pub mod volume;

pub mod error;

pub mod kernel;
pub mod socket;

pub mod config;
pub mod failpoint;
pub mod id;
pub mod metrics;
