#!/usr/bin/perl
# Hashes, regular expressions, sorting, and a file written through a pipe by other programs.
use strict;
use warnings;

my ($seed, %count) = (42);
open(my $output, '>', 'output.words') or die "output.words: $!";
open(my $sorted, '|-', 'sort | sha256sum > output.sorted') or die "sort: $!";
for my $step (1 .. 600) {
    my $text = '';
    for (1 .. 400) {
        $seed = ($seed * 1103515245 + 12345) % 2147483648;
        $text .= chr(97 + int($seed / 65536) % 26);
        $text .= ' ' if $seed / 65536 % 5 == 0;
    }
    $count{$1}++ while $text =~ /\b(\w{1,3})\b/g;
    my @top = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
    splice(@top, 5) if @top > 5;
    print $output "$step: ", join(' ', map { "$_=$count{$_}" } @top), "\n";
    print $sorted "$seed\n";
    $output->flush if $step % 10 == 0;
}
close($output) or die "output.words: $!";
close($sorted) or die "sort: $!";
print scalar(keys %count), " words\n";
