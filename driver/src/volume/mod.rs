//! What a volume is: its id, its record, its image, and what is promised to all of them.
pub mod attributes;
pub mod capability;
mod commit;
pub mod copy;
pub mod errand;
pub mod fence;
pub mod files;
pub mod image;
pub mod index;
pub mod nodes;
pub mod record;
pub mod space;
pub mod store;
pub mod topology;
pub mod torn;
mod watch;
