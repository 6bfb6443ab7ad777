//! Workflows: each file tells one user story by calling plumbing functions.
