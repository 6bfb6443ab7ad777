//! The PostgreSQL engine: finds, creates, configures, starts and stops servers.
