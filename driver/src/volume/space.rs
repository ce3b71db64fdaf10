//! What is promised to volumes, and what is left.
use std::path::Path;

use holdfast_proto::csi as pb;

use super::capability::{Access, Capability, Fs};
use crate::error::Error;

/// A filesystem's block: sizes are whole numbers of it.
const BLOCK: u64 = 4096;
/// Given where a caller names no size.
const DEFAULT_BYTES: u64 = 64 << 20;
/// The smallest image that ext4 with a journal fits in.
const MIN_EXT4: u64 = 4 << 20;
/// mkfs.xfs 6.1 refuses less.
const MIN_XFS: u64 = 300 << 20;

/// The smallest volume for these capabilities.
pub fn minimum(capabilities: &[Capability]) -> u64 {
    let of = |c: &Capability| match (c.access, c.fs) {
        (Access::Block, _) => BLOCK,
        (Access::Mount, Some(Fs::Xfs)) => MIN_XFS,
        (Access::Mount, Some(Fs::Ext4) | None) => MIN_EXT4,
    };
    capabilities.iter().map(of).max().unwrap_or(BLOCK)
}

/// The required and the limit bytes of a range; 0 where one is not given.
///
/// # Errors
/// INVALID_ARGUMENT for a range that is none.
pub fn range(given: pb::CapacityRange) -> Result<(u64, u64), Error> {
    let bytes = |value: i64, field| {
        u64::try_from(value).map_err(|_| Error::Invalid {
            field,
            value: value.to_string(),
            reason: String::from("is negative; give a number of bytes"),
        })
    };
    let required = bytes(given.required_bytes, "capacity_range.required_bytes")?;
    let limit = bytes(given.limit_bytes, "capacity_range.limit_bytes")?;
    if required == 0 && limit == 0 {
        return Err(Error::Missing {
            field: "capacity_range.required_bytes or limit_bytes",
        });
    }
    if limit > 0 && limit < required {
        return Err(Error::Invalid {
            field: "capacity_range.limit_bytes",
            value: limit.to_string(),
            reason: format!("is below required_bytes {required}"),
        });
    }
    Ok((required, limit))
}

/// The size of a volume that is asked for with `required` and, if not 0, at most `limit` bytes.
///
/// # Errors
/// OUT_OF_RANGE where no size fits.
pub fn size(required: u64, limit: u64, minimum: u64) -> Result<u64, Error> {
    let wanted = match (required, limit) {
        (0, 0) => DEFAULT_BYTES,
        (0, limit) => limit.min(DEFAULT_BYTES) / BLOCK * BLOCK,
        (required, _) => required,
    };
    let size = wanted.max(minimum).checked_next_multiple_of(BLOCK);
    match size {
        Some(size) if limit == 0 || size <= limit => Ok(size),
        Some(size) => Err(Error::Size {
            reason: format!("the smallest volume for this request has {size} bytes, limit_bytes is {limit}"),
        }),
        None => Err(Error::Size {
            reason: format!("{required} bytes are more than any volume has"),
        }),
    }
}

/// The size of a volume whose content is that of one with `source` bytes: as large as that where no size is asked for.
/// `size` is what the request comes to without a source.
///
/// # Errors
/// OUT_OF_RANGE for less than the source has.
pub fn size_of_copy(size: u64, required: u64, limit: u64, source: u64) -> Result<u64, Error> {
    let size = if required == 0 { source } else { size };
    if size < source || (limit > 0 && size > limit) {
        return Err(Error::Size {
            reason: format!(
                "the source has {source} bytes and its copy cannot have less; required_bytes is {required}, limit_bytes {limit}"
            ),
        });
    }
    Ok(size)
}

/// Bytes that may be promised in all: what was configured, else the size of the data folder's filesystem.
///
/// # Errors
/// If the filesystem cannot be asked.
pub fn total(root: &Path, configured: Option<u64>) -> Result<u64, Error> {
    if let Some(bytes) = configured {
        return Ok(bytes);
    }
    let stats = nix::sys::statvfs::statvfs(root)
        .map_err(|e| Error::storage("statvfs of the data folder")(e.into()))?;
    Ok(stats.blocks() * stats.fragment_size())
}

/// Bytes that the filesystem of the data folder still has.
///
/// # Errors
/// If it cannot be asked.
pub fn available(root: &Path) -> Result<u64, Error> {
    let stats = nix::sys::statvfs::statvfs(root)
        .map_err(|e| Error::storage("statvfs of the data folder")(e.into()))?;
    Ok(stats.blocks_available() * stats.fragment_size())
}

/// Bytes not yet promised.
pub fn free(total: u64, promised_bytes: u64) -> u64 {
    total.saturating_sub(promised_bytes)
}

/// Fails unless `more` bytes can be promised.
///
/// # Errors
/// OUT_OF_RANGE if they never could, RESOURCE_EXHAUSTED if they cannot now.
pub fn reserve(total: u64, promised_bytes: u64, more: u64) -> Result<(), Error> {
    if more > total {
        return Err(Error::Size {
            reason: format!("{more} bytes are wanted, the data folder has {total} in all"),
        });
    }
    let free_bytes = free(total, promised_bytes);
    if more > free_bytes {
        return Err(Error::NoSpace {
            wanted_bytes: more,
            free_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic::Code;

    use super::*;

    #[rstest]
    #[case::default(0, 0, MIN_EXT4, Ok(DEFAULT_BYTES))]
    #[case::rounded_up(5_000_000, 0, MIN_EXT4, Ok(5_001_216))]
    #[case::xfs_is_rounded_up(1 << 20, 0, MIN_XFS, Ok(MIN_XFS))]
    #[case::xfs_that_may_not_be(1 << 20, 100 << 20, MIN_XFS, Err(Code::OutOfRange))]
    #[case::limit_within_a_block(4097, 5000, BLOCK, Err(Code::OutOfRange))]
    #[case::largest(i64::MAX as u64, 0, BLOCK, Ok(1 << 63))]
    fn sizes(
        #[case] required: u64,
        #[case] limit: u64,
        #[case] minimum: u64,
        #[case] expected: Result<u64, Code>,
    ) {
        assert_eq!(size(required, limit, minimum).map_err(|e| e.code()), expected);
    }

    #[rstest]
    #[case::both(10, 20, Ok((10, 20)))]
    #[case::only_a_limit(0, 5, Ok((0, 5)))]
    #[case::neither(0, 0, Err(Code::InvalidArgument))]
    #[case::limit_below(10, 5, Err(Code::InvalidArgument))]
    #[case::negative(-1, 0, Err(Code::InvalidArgument))]
    #[case::negative_limit(1, i64::MIN, Err(Code::InvalidArgument))]
    fn ranges(
        #[case] required_bytes: i64,
        #[case] limit_bytes: i64,
        #[case] expected: Result<(u64, u64), Code>,
    ) {
        let given = pb::CapacityRange {
            required_bytes,
            limit_bytes,
        };
        assert_eq!(range(given).map_err(|e| e.code()), expected);
    }

    #[rstest]
    #[case::as_large_where_none_is_named(0, 0, Ok(300 << 20))]
    #[case::the_same(300 << 20, 0, Ok(300 << 20))]
    #[case::larger(400 << 20, 0, Ok(400 << 20))]
    #[case::smaller(100 << 20, 0, Err(Code::OutOfRange))]
    #[case::limit_below_the_source(0, 100 << 20, Err(Code::OutOfRange))]
    fn sizes_of_copies(#[case] required: u64, #[case] limit: u64, #[case] expected: Result<u64, Code>) {
        let result =
            size(required, limit, BLOCK).and_then(|size| size_of_copy(size, required, limit, 300 << 20));
        assert_eq!(result.map_err(|e| e.code()), expected);
    }
}
