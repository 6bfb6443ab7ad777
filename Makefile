# What a newcomer types: make demo, make test.
PREFIX ?= /usr/local
CARGO ?= cargo
# Where rustup puts it, which a shell may not know yet.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

.PHONY: help demo test build bench chaos kills crashpoints moments races fuzz regress man install clean

help:
	@echo "make demo     install what is missing, build, and play the walk-through"
	@echo "make test     install what is missing, and run all checks and tests"
	@echo "make bench    compare with tar, pgbackrest, restic and native directories, side by side"
	@echo "make chaos    kill anything at random for SECONDS=600, as SEED=1 has it, and look for what was lost"
	@echo "make kills    kill servers and file systems 50 times under load, and look for what was lost"
	@echo "make crashpoints  stop each command before each of its writes (one COMMAND only; MOST places, by SEED), and look at what is left"
	@echo "make moments  show and start every kind of moment, on every kind of branch, of every version"
	@echo "make races    connect just when a server is being stopped, hundreds of times"
	@echo "make fuzz     feed each reader of foreign bytes with 10 million inputs"
	@echo "make regress  run PostgreSQL's own regression suite on a lazy data directory"
	@echo "make man      write the man pages from the command definitions"
	@echo "make install  install the program, man pages and completions (PREFIX=$(PREFIX))"

demo:
	scripts/install-deps
	$(CARGO) build --release
	demo/walkthrough target/release/zenith

test:
	scripts/install-deps test
	scripts/test

build:
	$(CARGO) build --release

bench:
	scripts/install-deps bench
	$(CARGO) bench --bench peers
	$(CARGO) bench --bench lazy
	$(CARGO) bench --bench proxy

chaos: export ZENITH_CHAOS_SEED = $(SEED)
chaos: export ZENITH_CHAOS_SECONDS = $(SECONDS)
chaos: export ZENITH_CHAOS_BURNERS = $(BURNERS)
chaos:
	scripts/install-deps test
	$(CARGO) test --release --test it -- --ignored --exact it::chaos::campaign --nocapture

kills:
	scripts/install-deps test
	$(CARGO) test --release --test it -- --ignored --exact it::lazy::kills::fifty_kills --show-output

crashpoints: export ZENITH_CRASHPOINTS = $(COMMAND)
crashpoints: export ZENITH_CRASHPOINTS_MOST = $(MOST)
crashpoints: export ZENITH_CRASHPOINTS_SEED = $(SEED)
crashpoints:
	scripts/install-deps test
	$(CARGO) test --release --test it -- --ignored it::crashpoints --show-output

moments:
	scripts/install-deps test
	scripts/moments

races:
	scripts/install-deps test
	$(CARGO) test --release --test it -- --ignored --exact it::pageserver::life::hundreds_of_races --show-output

fuzz:
	scripts/install-deps test
	scripts/fuzz all -runs=10000000 -verbosity=0

regress: build
	scripts/install-deps
	scripts/regress target/release/zenith

man:
	$(CARGO) run --quiet --example man

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(foreach section,1 5 7,$(DESTDIR)$(PREFIX)/share/man/man$(section))
	# Without the debug information, nine tenths of it.
	install -s -m 755 target/release/zenith $(DESTDIR)$(PREFIX)/bin/zenith
	install -m 644 man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 man/*.7 $(DESTDIR)$(PREFIX)/share/man/man7
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	target/release/zenith completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/zenith
	target/release/zenith completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_zenith
	target/release/zenith completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/zenith.fish

clean:
	$(CARGO) clean
