# A program of many files of C, for `make -j2`. What the passes of the compiler hand each other lies in files that
# nobody has open in between.
export TMPDIR := $(CURDIR)/passes
files := $(shell seq 1 32)

output.run: build/program
	./build/program | sha256sum > $@
	echo built

build/program: $(files:%=build/part%.o) build/main.o
	gcc -o $@ $^

build/part%.c:
	@mkdir -p build
	awk -v number=$* -f parts.awk > $@

build/main.c:
	@mkdir -p build
	awk -v all=32 -f parts.awk > $@

build/%.o: build/%.c
	gcc -O1 -c -o $@ $<
	cksum < $@ > output.$*

.SECONDARY:
