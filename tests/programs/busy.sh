# A static shell whose commands are part of it: loops, functions, pipes, here documents, arithmetic.
step() {
	value=$(( (value * 48271 + $1) % 2147483647 ))
	printf '%d %d\n' "$1" "$value" | sed 's/1/one/g' | tr a-z A-Z
}

value=7
number=0
while [ "$number" -lt 400 ]; do
	number=$((number + 1))
	step "$number"
	while read -r word rest; do
		[ "$word" = skip ] || echo "$word $((number % 7))"
	done <<-WORDS
		skip this
		turn $number
	WORDS
	usleep 2000
done >output.shell
