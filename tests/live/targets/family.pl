# Three children send numbers through pipes while a timer interrupts their parent; it
# notices each number that is missing, double or wrong. They go on until there is a file.
#
#     family.pl GO BEGUN RESULT
use strict;
use warnings;
use IO::Select;
use Time::HiRes qw(setitimer ITIMER_REAL);

my ($go, $begun, $result) = @ARGV;
my $ticks = 0;
$SIG{ALRM} = sub { $ticks++ };
my $readers = IO::Select->new;
my @children;

sub next_sum { my ($sum, $n, $child) = @_; return ($sum * 31 + $n * $child) % 1000003 }

sub send_numbers {
    my ($child, $pipe) = @_;
    my ($n, $sum) = (0, 0);
    until (-e $go) {
        $sum = next_sum($sum, ++$n, $child);
        syswrite $pipe, "$child $n $sum\n";
        select undef, undef, undef, 0.005;
    }
    syswrite $pipe, "$child end $n\n";
    exit $child;
}

sub put {
    my ($path, $text) = @_;
    open my $file, '>', "$path.new" or die "$path: $!";
    print $file $text;
    close $file;
    rename "$path.new", $path or die "$path: $!";
}

# Whoever reads the FIFO sees its end.
sub tell_begun { open my $fifo, '>', $begun or die "$begun: $!"; close $fifo }

for my $child (1 .. 3) {
    pipe my $reader, my $writer or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        close $reader;
        send_numbers($child, $writer);
    }
    close $writer;
    $readers->add($reader);
    push @children, $pid;
}
setitimer(ITIMER_REAL, 0.02, 0.02);

my (%count, %sum, %rest, %ended);
my $wrong = 0;
while ($readers->count) {
    for my $reader ($readers->can_read) {
        my $got = sysread $reader, my $text, 4096;
        next if !defined $got;    # the timer
        if (!$got) {
            $readers->remove($reader);
            next;
        }
        $rest{$reader} .= $text;
        while ($rest{$reader} =~ s/^(.*)\n//) {
            my ($child, $n, $sum) = split / /, $1;
            if ($n eq 'end') {
                $ended{$child} = 1;
                $wrong++ if $sum != $count{$child};
                next;
            }
            tell_begun() if !$count{$child}++ && keys %count == 3;
            $sum{$child} = next_sum($sum{$child} // 0, $n, $child);
            $wrong++ if $n != $count{$child} || $sum != $sum{$child};
        }
    }
}
my @codes = map { waitpid $_, 0; $? >> 8 } @children;
my $ticked = $ticks > 0 ? 'ticked' : 'never ticked';
put($result, "$wrong wrong, codes @codes, " . keys(%ended) . " ended, $ticked\n");
