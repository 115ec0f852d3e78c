# Writes a file of a program in C: part `number` of it, or, for `all` parts, what calls them.
BEGIN {
	print "#include <stdio.h>"
	if (all) {
		for (part = 1; part <= all; part++)
			print "double part" part "(double);"
		print "int main(void)\n{\n\tdouble value = 1;"
		for (part = 1; part <= all; part++)
			print "\tprintf(\"%d %.6f\\n\", " part ", value = part" part "(value));"
		print "\treturn 0;\n}"
		exit
	}
	for (turn = 1; turn <= 6; turn++) {
		print "static double step" turn "(double value)\n{"
		print "\tfor (int i = 0; i < " turn * number "; i++)"
		print "\t\tvalue = value * 0.5 + i % " turn + 1 " + (value > " number " ? -1 : 1);"
		print "\treturn value;\n}"
	}
	print "double part" number "(double value)\n{"
	for (turn = 1; turn <= 6; turn++)
		print "\tvalue += step" turn "(value);"
	print "\treturn value / 1000;\n}"
}
