//! The repository's config.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zenith::objects::format::Config;

fuzz_target!(|text: &str| {
    let Ok(config) = Config::parse(text) else { return };
    let again = Config::parse(&config.format()).expect("what is written can be read");
    // Not a number is not equal to itself.
    assert_eq!(again.format(), config.format());
    let _ = (config.system(), config.idle_timeout("main"), config.settings_of("main"));
});
