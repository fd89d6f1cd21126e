# What follows the tests: `make -j 2 -f .ci/checks.mk` runs two at a time, the longest first.
export OMP_NUM_THREADS := 1
CONTRACT := ../shared/acceptance/contract.py
SECTIONS := core geodesics curvature ambient autoencoders decoders neighbors statistics trainers

.PHONY: all wheel docs extras contract types doctest demo lint

all: wheel docs extras contract types doctest demo lint

wheel docs extras types doctest lint:
	$(MAKE) --no-print-directory $@

# The promises of the public interface, where they are at hand.
contract:
	if [ -f $(CONTRACT) ]; then .venv/bin/python $(CONTRACT) $(SECTIONS); fi

demo:
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	.venv/bin/riemae demo --quiet --out "$$out" --epochs 40 --pairs 3 --subset 6 && \
	for file in latent.png strips.png distances.png distances.npz; do test -s "$$out/$$file" || exit 1; done
