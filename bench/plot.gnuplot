# Bars for both sides. report.py puts before it `output`, the picture, and $waits: "what" TAB plain TAB citadel-llm (s).
set terminal svg size 900,420 font "sans-serif,12" background "white"
set output output
set datafile separator tab
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9
set boxwidth 0.9
set ylabel "seconds"
set yrange [0:*]
set grid ytics
set border 3
set tics nomirror
set xtics rotate by -30
set key top right
plot $waits using 2:xtic(1) title "plain vllm serve" lc rgb "#9aa5b1", $waits using 3 title "citadel-llm" lc rgb "#2563eb"
