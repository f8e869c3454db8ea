# SPDX-License-Identifier: Apache-2.0
# Speed against depth, a line a policy and a peer. Variables from bench/plots/speed: data (a block a line, its name first,
# then depth, median, least, most), out, n (blocks), what (title of the y axis), log ("1": logarithmic y).
set terminal svg size 900,540 font "sans,13" background rgb "white"
set output out
set xlabel "tokens in the cache"
set ylabel what
if (log eq "1") set logscale y; else set yrange [0:*]
set key outside right top noenhanced
set grid
set pointsize 0.6
plot for [i=0:n-1] data index i using 1:2:3:4 with yerrorlines linewidth 1.5 title columnheader(1)
