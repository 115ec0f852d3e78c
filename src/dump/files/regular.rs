//! Regular files, memfds and directories.

use super::scan::Description;
use super::{Collector, Failure, call_failed, duplicate};
use crate::model::file::OpenFileKind;
use crate::sys::descriptor;

/// Records a description of a regular file or memfd.
pub(super) fn collect(
    collector: &mut Collector,
    found: &Description,
) -> Result<OpenFileKind, Failure> {
    let inode = collector.intern_description(found)?;
    collector.inodes.mark_opened(inode, found.access() != libc::O_RDONLY);
    let appends = found.flags().cast_signed() & libc::O_APPEND != 0;
    if found.access() == libc::O_RDWR && !appends {
        collector.inodes.mark_changing(inode);
    }
    if collector.inodes.is_memfd(inode) {
        let seals =
            descriptor::seals(duplicate(found)?).map_err(call_failed(found, "F_GET_SEALS"))?;
        collector.inodes.set_seals(inode, seals);
    }
    Ok(OpenFileKind::Regular { inode, position: found.position() })
}

/// Records a description of a directory.
pub(super) fn collect_directory(
    collector: &mut Collector,
    found: &Description,
) -> Result<OpenFileKind, Failure> {
    let inode = collector.intern_description(found)?;
    Ok(OpenFileKind::Directory { inode, position: found.position() })
}
