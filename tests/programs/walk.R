# R: random numbers, matrices, a model fitted again and again, and now and then processes of its own.
set.seed(2005)
output <- file("output.walk", "w")
place <- 0
for (step in 1:160) {
  values <- matrix(rnorm(900), 30)
  place <- place + svd(values)$d[1] - 14
  fit <- lm(values[, 1] ~ values[, 2] + values[, 3])
  cat(step, format(place, digits = 10), format(coef(fit)[[2]], digits = 8), "\n", file = output)
  flush(output)
  if (step %% 40 == 0) {
    parts <- parallel::mclapply(1:4, function(part) sum((part * step):(part * step + 1000)), mc.cores = 2)
    cat("parts", unlist(parts), "\n")
  }
  Sys.sleep(0.004)
}
close(output)
cat("done\n")
