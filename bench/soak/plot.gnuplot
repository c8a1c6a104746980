# A curve for each unit. report.py puts before it `output`, the picture; `bound` (per cent); `curves`, their number; and
# $memory: blocks of a name, then minute TAB memory in per cent of that in minutes 25 to 35.
set terminal svg size 900,420 font "sans-serif,12" background "white"
set output output
set datafile separator tab
set xlabel "minutes"
set ylabel "memory (PSS), % of minutes 25 to 35"
set grid ytics
set border 3
set tics nomirror
set key top right
plot for [block = 0 : curves - 1] $memory index block using 1:2 with lines lw 2 title columnheader(1), \
     bound with lines dt 2 lc rgb "#9aa5b1" title "bound"
