output "bucket" {
  description = "PIPELINE_LAKE__URI is s3:// and this"
  value       = aws_s3_bucket.this.bucket
}

output "arn" {
  description = "For the policies of the stages"
  value       = aws_s3_bucket.this.arn
}
