//! Descriptors of other processes: pidfd_getfd, kcmp, and the calls that look into pipes and files.
