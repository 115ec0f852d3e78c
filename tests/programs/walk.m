% Octave: random numbers, matrices, and a program that it starts now and then.
rand("twister", 2005);
output = fopen("output.walk", "w");
place = 0;
for step = 1:240
  values = rand(60);
  place += max(svd(values)) - 30 + det(inv(values) * values);
  fprintf(output, "%d %.8f %s\n", step, place, mat2str(round(1000 * values(1, 1:3))));
  fflush(output);
  if mod(step, 40) == 0
    [status, text] = system(sprintf("echo $((%d * %d))", step, step));
    printf("%d %s", status, text);
    fflush(stdout);
  endif
  pause(0.004);
endfor
fclose(output);
disp("done");
